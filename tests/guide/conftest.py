"""The program that runs the guide's pages, and the pages once run."""

import importlib.util
import sys
from functools import cache
from pathlib import Path

import pytest

PROGRAM = Path(__file__).resolve().parents[2] / "docs" / "make_guide.py"


def load_program():
    spec = importlib.util.spec_from_file_location("make_guide", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_guide"] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


GUIDE = load_program()


@pytest.fixture(scope="session")
def guide():
    """docs/make_guide.py as a module."""
    return GUIDE


@pytest.fixture(scope="session")
def run_page(tmp_path_factory):
    """A function from a page's name to what came out of it, and the folder it ran in."""

    @cache
    def run(name):
        folder = tmp_path_factory.mktemp(name)
        return GUIDE.run_page(GUIDE.GUIDE / f"{name}.md", folder), folder

    return run


def pytest_generate_tests(metafunc):
    if "page" in metafunc.fixturenames:
        metafunc.parametrize("page", GUIDE.pages(), ids=lambda path: path.stem)
