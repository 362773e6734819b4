"""The Python half of each activation, loss and optimizer; the C half is in csrc/*.def.

Adding one takes a row there and a row here. Validation, error messages, the backends, the tests
and the documentation iterate over the rows.
"""
