"""What the command line shows of a classifier: as text in a terminal, or as PNG files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastnn.history import History

__all__ = ["confusion_matrix", "confusion_text", "digits_text", "write_pictures"]

# From no ink to full ink; the second set is for terminals that cannot show the first.
SHADES = (" ░▒▓█", " .:*#")


def confusion_matrix(truth: np.ndarray, predicted: np.ndarray, n_classes: int) -> np.ndarray:
    """Counts of (true class, predicted class).

    Parameters
    ----------
    truth, predicted : ndarray of shape (n_samples,), integer
        In 0..n_classes - 1.
    n_classes : int

    Returns
    -------
    ndarray of shape (n_classes, n_classes), int64
    """
    flat = np.bincount(truth * n_classes + predicted, minlength=n_classes * n_classes)
    return flat.reshape(n_classes, n_classes)


def confusion_text(matrix: np.ndarray, names: Sequence[str], encoding: str = "utf-8") -> str:
    """The confusion matrix as a table: a line per true class, a column per predicted one."""
    nothing = "·" if _can_show("·", encoding) else "."
    shown = [_shorten(name, 12, encoding) for name in names]
    width = max(3, len(str(matrix.max(initial=0))), *(len(name) for name in shown)) + 1
    margin = max(len("true"), *(len(name) for name in shown)) + 1
    lines = [
        " " * margin + "predicted",
        "true".ljust(margin) + "".join(name.rjust(width) for name in shown),
    ]
    for name, row in zip(shown, matrix, strict=True):
        cells = "".join((str(n) if n else nothing).rjust(width) for n in row)
        lines.append(name.ljust(margin) + cells)
    return "\n".join(lines)


def digits_text(images: np.ndarray, captions: Sequence[str], encoding: str = "utf-8") -> str:
    """Images beside each other, two characters a pixel, a caption below each.

    Parameters
    ----------
    images : ndarray of shape (n_images, height, width), 0..1
    captions : sequence of str, one per image
    encoding : str
        Of the terminal: where it lacks the block characters, ASCII stands in.
    """
    shades = SHADES[0] if _can_show(SHADES[0], encoding) else SHADES[1]
    levels = np.rint(np.clip(images, 0, 1) * (len(shades) - 1)).astype(int)
    lines = [
        "   ".join("".join(2 * shades[level] for level in image[y]) for image in levels).rstrip()
        for y in range(images.shape[1])
    ]
    width = 2 * images.shape[2]
    lines.append("   ".join(caption[:width].ljust(width) for caption in captions).rstrip())
    return "\n".join(lines)


def write_pictures(
    folder: Path,
    history: History,
    matrix: np.ndarray,
    names: Sequence[str],
    weights: np.ndarray,
    misread: tuple[np.ndarray, Sequence[str]],
) -> list[Path]:
    """Write loss.png, confusion.png, first_layer.png and misread.png.

    Parameters
    ----------
    folder : Path
        Made where it does not exist; files of those names are replaced.
    history : History
    matrix : ndarray of shape (n_classes, n_classes)
    names : sequence of str
    weights : ndarray of shape (n_pixels, n_units)
        Of the first layer; the images are square.
    misread : (images of shape (n, height, width), captions)

    Returns
    -------
    list of Path

    Raises
    ------
    ImportError
        Matplotlib is not installed.
    OSError
        The folder cannot be written to.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'fastnn-mlp[plot]'") from error
    folder.mkdir(parents=True, exist_ok=True)
    # Figure, not pyplot: no window system, no global state.
    figures = {
        "loss": _loss_figure(Figure(figsize=(6, 4), layout="constrained"), history),
        "confusion": _confusion_figure(Figure(figsize=(6, 5), layout="constrained"), matrix, names),
        "first_layer": _weights_figure(Figure(figsize=(8, 8), layout="constrained"), weights),
        "misread": _images_figure(Figure(figsize=(8, 4), layout="constrained"), *misread),
    }
    paths = []
    for name, figure in figures.items():
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1], dpi=120)
    return paths


def _loss_figure(figure: Any, history: History) -> Any:
    axes = history.plot(figure.add_subplot())
    axes.set_yscale("log")
    axes.set_title("Loss after each epoch")
    axes.grid(alpha=0.3)
    return figure


def _confusion_figure(figure: Any, matrix: np.ndarray, names: Sequence[str]) -> Any:
    axes = figure.add_subplot()
    # Colour by share of the true class, so that rare classes show; the numbers are counts.
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(matrix):
        if count:
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(count), ha="center", va="center", color=colour)
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title("Held-out rows")
    return figure


def _weights_figure(figure: Any, weights: np.ndarray) -> Any:
    side = round(np.sqrt(len(weights)))
    n_columns = int(np.ceil(np.sqrt(weights.shape[1])))
    limit = np.abs(weights).max()
    for unit, column in enumerate(weights.T):
        axes = figure.add_subplot(-(-weights.shape[1] // n_columns), n_columns, unit + 1)
        axes.imshow(column.reshape(side, side), cmap="RdBu_r", vmin=-limit, vmax=limit)
        axes.axis("off")
    figure.suptitle("Weights into each unit of the first layer (red: ink excites)")
    return figure


def _images_figure(figure: Any, images: np.ndarray, captions: Sequence[str]) -> Any:
    for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
        axes = figure.add_subplot(-(-len(images) // 6), 6, i + 1)
        axes.imshow(image, cmap="gray_r", vmin=0, vmax=1)
        axes.set_title(caption, fontsize=9)
        axes.axis("off")
    figure.suptitle("Misread digits" if len(images) else "No digit was misread")
    return figure


def _can_show(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except (LookupError, UnicodeEncodeError):
        return False
    return True


def _shorten(text: str, width: int, encoding: str) -> str:
    text = text.encode(encoding, "replace").decode(encoding, "replace")
    return text if len(text) <= width else text[: width - 1] + "~"
