"""Where the project's files are: some are installed, some lie only in a checkout or an sdist."""

from pathlib import Path

import pytest

import fastnn


@pytest.fixture(scope="session")
def root() -> Path:
    """Folder with README.md, csrc/ and setup.py; it need not hold fastnn/ itself."""
    return Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def package() -> Path:
    """Folder of the package that `import fastnn` found."""
    return Path(fastnn.__file__).resolve().parent
