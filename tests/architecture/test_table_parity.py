"""The C half and the Python half of every table name the same rows in the same order."""

import re

import pytest

from fastnn.backends import _native
from fastnn.tables.activations import ACTIVATIONS, LINKS
from fastnn.tables.losses import LOSSES
from fastnn.tables.optimizers import OPTIMIZERS


def def_rows(root, table: str, macro: str) -> list[list[str]]:
    """Leading plain columns (names and numbers) of each row of csrc/<table>.def."""
    text = (root / "csrc" / f"{table}.def").read_text(encoding="utf-8")
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    rows = re.findall(rf"^{macro}\(([^\n]*)", text, flags=re.MULTILINE)
    return [[column.strip() for column in row.split(",")] for row in rows]


def names(rows: list[list[str]]) -> list[str]:
    return [row[0] for row in rows]


def test_activations(root):
    rows = def_rows(root, "activations", "ACTIVATION")
    in_c = names(rows)
    assert len(in_c) > 10
    # exp is a link that has an ordinary row in C; softmax couples a row's outputs and has none.
    assert in_c == [*ACTIVATIONS, "exp"]
    assert list(_native.activation_names()) == [*in_c, "softmax"]
    assert set(LINKS) == {"exp", "softmax"}


def test_activations_agree_on_what_the_derivative_needs(root):
    needs_z = {row[0]: row[1] == "1" for row in def_rows(root, "activations", "ACTIVATION")}
    for name, row in ACTIVATIONS.items():
        assert row.name == name
        assert row.needs_z == needs_z[name], name


def test_losses(root):
    rows = def_rows(root, "losses", "LOSS")
    assert len(rows) > 5
    assert names(rows) == list(LOSSES)
    assert list(_native.loss_names()) == list(LOSSES)


def test_losses_agree_on_the_natural_link(root):
    for name, link in (row[:2] for row in def_rows(root, "losses", "LOSS")):
        assert LOSSES[name].natural_output == link, name


def test_optimizers(root):
    rows = def_rows(root, "optimizers", "OPTIMIZER")
    assert len(rows) > 5
    assert list(_native.optimizer_names()) == names(rows)
    kernels = {row[0]: int(row[1]) for row in rows}
    seen = {}
    for cls in OPTIMIZERS.values():
        for arguments in ({}, {"momentum": 0.5}, {"momentum": 0.5, "nesterov": True}):
            try:
                optimizer = cls(**arguments)
            except TypeError:
                continue
            kernel = getattr(optimizer, "kernel", None)
            if kernel in kernels:
                seen[kernel] = optimizer.n_slots
    assert seen == kernels


def test_scalars_have_as_many_columns_as_the_kernel_reads(root):
    columns = {row[0]: int(row[2]) for row in def_rows(root, "optimizers", "OPTIMIZER")}
    np = pytest.importorskip("numpy")
    checked = set()
    for cls in OPTIMIZERS.values():
        optimizer = cls()
        if optimizer.kernel not in columns:
            continue
        scalars, _ = optimizer.step_scalars(optimizer.init_counters(), np.full(3, 0.01))
        assert scalars.shape == (3, columns[optimizer.kernel]), optimizer
        checked.add(optimizer.kernel)
    assert {"sgd", "adam", "adamw", "nadam", "rmsprop", "adagrad", "rprop"} <= checked


def test_instruction_sets_are_ordered_worst_to_best(root):
    order = names(def_rows(root, "isas", "ISA"))
    assert order == ["baseline", "neon", "avx2", "avx512"]
    available = list(_native.available_isas())
    assert available == [name for name in order if name in available]
    assert available[0] == "baseline"
