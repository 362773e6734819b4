"""Notice the foreign distribution that installs over this package (docs/adr/0010)."""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Iterable

__all__ = ["find_foreign_distribution", "warn_about_foreign_distribution"]

# Metadata of a distribution named exactly `fastnn`; ours is `fastnn_mlp-...`.
_FOREIGN = re.compile(r"fastnn-\d[^-]*(-py[\d.]+)?\.(dist|egg)-info", re.IGNORECASE)


def find_foreign_distribution(folders: Iterable[str]) -> str | None:
    """Path of the metadata of PyPI's ``fastnn`` in the first of `folders` that has it.

    One directory listing per folder: `importlib.metadata` would open every distribution's metadata,
    which costs more than the rest of ``import fastnn``.

    Parameters
    ----------
    folders : iterable of str
        Folders to look in; those that cannot be read are passed over.

    Returns
    -------
    str or None
        The folder or file that pip wrote for it, or None.
    """
    for folder in folders:
        try:
            names = os.listdir(folder)
        except OSError:
            continue
        for name in names:
            if _FOREIGN.fullmatch(name):
                return os.path.join(folder, name)
    return None


def warn_about_foreign_distribution() -> None:
    """Warn where PyPI's ``fastnn`` lies in a folder of installed packages."""
    installed = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    found = find_foreign_distribution(installed)
    if found is not None:
        warnings.warn(
            f"another distribution that is also imported as `fastnn` is installed ({found}); the "
            "two overwrite each other's files. Expected only `fastnn-mlp`. Remedy: "
            "`pip uninstall -y fastnn fastnn-mlp`, then `pip install fastnn-mlp`",
            UserWarning,
            stacklevel=3,
        )
