"""The public names: all there, and nothing that costs."""

import subprocess
import sys

import pytest

import fastnn


def test_every_public_name_exists():
    for name in fastnn.__all__:
        assert getattr(fastnn, name) is not None
        assert name in dir(fastnn)


def test_unknown_names():
    with pytest.raises(AttributeError, match="module 'fastnn' has no attribute 'nope'"):
        fastnn.nope


def test_import_loads_nothing_heavy():
    code = (
        "import sys, fastnn; heavy = 'numba sklearn scipy matplotlib safetensors tqdm'.split();"
        "print([name for name in heavy if name in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
