"""Data to start with, and readers for two common file formats."""

from fastnn.datasets.digits import load_digits
from fastnn.datasets.idx import IdxData, load_idx, read_idx
from fastnn.datasets.table import Table, encode_classes, read_csv

__all__ = [
    "IdxData",
    "Table",
    "encode_classes",
    "load_digits",
    "load_idx",
    "read_csv",
    "read_idx",
]
