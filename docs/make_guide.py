"""Run the pages of the guide, and write their pictures and printed outputs.

    python docs/make_guide.py            all pages
    python docs/make_guide.py 03 08      pages whose names begin so

A page is Markdown. Its ``python`` blocks run in order, in one namespace. A ``text`` block right
after one of them is what it prints. A comment ``<!-- check: EXPRESSION -->`` holds the prose
before it to the numbers, and must be true. The lines after ``<!-- table: NAME -->`` are made from
the package's tables. Pictures are saved by the blocks themselves, with
``figure.savefig("name.png")``; here they are made small and put into docs/guide/pictures.

The tests (tests/guide) run the pages with the functions of this file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import linecache
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

GUIDE = Path(__file__).resolve().parent / "guide"
PICTURES = GUIDE / "pictures"

# Okabe and Ito's colours, which most colour-blind readers can tell apart.
COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#444444", "#B8A800"]
STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#888888",
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 11,
    "figure.constrained_layout.use": True,
    "figure.dpi": 100,
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "grid.alpha": 0.25,
    "image.cmap": "Blues",
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "savefig.bbox": "tight",
    "savefig.dpi": 110,
    "savefig.pad_inches": 0.08,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
}


@dataclass
class Block:
    """A piece of a page that does something.

    `kind` is "python", "output" (what the python block before it prints) or "check"; `line` is
    that of its first line of code, counted from 0, and `end` the one after its last.
    """

    kind: str
    code: str
    line: int
    end: int


@dataclass
class Run:
    """What came out of a page: its namespace, and (expected, printed, line) of every output."""

    names: dict[str, Any]
    outputs: list[tuple[str, str, int]] = field(default_factory=list)


def pages() -> list[Path]:
    """The pages of the guide, in the order of reading."""
    return sorted(GUIDE.glob("[0-9]*.md"))


def blocks(text: str) -> Iterator[Block]:
    """The blocks of a page, in order."""
    lines = text.splitlines()
    after_python = False  # with nothing but blank lines since
    i = 0
    while i < len(lines):
        line = lines[i]
        if line.startswith("```"):
            end = next(k for k in range(i + 1, len(lines)) if lines[k].startswith("```"))
            kind = {"```python": "python", "```text": "output" if after_python else ""}.get(line)
            if kind:
                yield Block(kind, "\n".join(lines[i + 1 : end]), i + 1, end)
            after_python = kind == "python"
            i = end
        elif line.startswith("<!-- check:"):
            end = next(k for k in range(i, len(lines)) if lines[k].endswith("-->"))
            code = "\n".join(lines[i : end + 1])
            code = code.removeprefix("<!-- check:").removesuffix("-->").strip()
            yield Block("check", code, i, end + 1)
            i = end
        elif line.strip():
            after_python = False
        i += 1


def show_source(page: Path, text: str) -> None:
    """Let `inspect` find the source of functions defined on a page: its code, in its lines."""
    lines = [""] * len(text.splitlines())
    for block in blocks(text):
        if block.kind == "python":
            lines[block.line : block.end] = block.code.splitlines()
    source = [line + "\n" for line in lines]
    linecache.cache[str(page)] = (len("".join(source)), None, source, str(page))


def run_page(page: Path, folder: Path) -> Run:
    """Run a page in `folder`, where its pictures and files will lie.

    Raises AssertionError where a check does not hold, and whatever the code raises.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from cycler import cycler
    from matplotlib import pyplot

    run = Run({"__name__": page.stem})
    printed, end_of_code = "", 0
    style = {**STYLE, "axes.prop_cycle": cycler(color=COLORS)}
    before = Path.cwd()
    os.chdir(folder)
    try:
        with mpl.rc_context(style):
            text = page.read_text(encoding="utf-8")
            show_source(page, text)
            for block in blocks(text):
                # Empty lines before the code, so that a traceback names the line of the page.
                code = "\n" * block.line + block.code
                if block.kind == "python":
                    out = io.StringIO()
                    with contextlib.redirect_stdout(out):
                        exec(compile(code, str(page), "exec"), run.names)
                    printed, end_of_code = out.getvalue(), block.end
                elif block.kind == "output":
                    run.outputs.append((block.code, printed, end_of_code))
                else:
                    expression = "\n" * block.line + f"({block.code})"
                    holds = eval(compile(expression, str(page), "eval"), run.names)
                    assert bool(holds), f"{page.name}:{block.line + 1}: not so: {block.code}"
    finally:
        os.chdir(before)
        pyplot.close("all")
    return run


NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")


def same_output(expected: str, printed: str, tolerance: float = 0.02) -> bool:
    """Whether an output is what the page says.

    Words and spaces must agree, numbers to the relative tolerance and one unit of the last digit
    shown.
    """
    expected, printed = (
        "\n".join(line.rstrip() for line in text.strip().splitlines())
        for text in (expected, printed)
    )
    # A number may be a sign or a digit longer: widths do not count beside it.
    words = [re.sub(r"\s*0\s*", "0", NUMBER.sub("0", text)) for text in (expected, printed)]
    if words[0] != words[1]:
        return False
    for said, found in zip(NUMBER.findall(expected), NUMBER.findall(printed), strict=True):
        mantissa, _, exponent = said.partition("e")
        unit = 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))
        if abs(float(said) - float(found)) > 1.0001 * unit + tolerance * abs(float(said)):
            return False
    return True


def activation_table() -> list[str]:
    """Every activation and output link: formula, range, slope at 0, largest slope, source."""
    import numpy as np

    from fastnn.tables.activations import ACTIVATIONS, LINKS

    z = np.linspace(-8, 8, 160001)
    rows = [("name", "formula", "range", "slope at 0", "largest slope", "source")]
    for row in [*ACTIVATIONS.values(), *LINKS.values()]:
        slopes = ("", "")
        if row.df is not None:
            at_zero = float(row.df(np.zeros(1), row.f(np.zeros(1)))[0])
            largest = float(np.abs(row.df(z, row.f(z))).max())
            slopes = (f"{at_zero:.3g}", "unbounded" if row.name == "exp" else f"{largest:.3g}")
        bounds = " to ".join(f"{bound:.3g}".replace("inf", "∞") for bound in row.range)
        rows.append((row.name, row.formula, bounds, *slopes, row.source))
    return markdown_table(rows)


def loss_table() -> list[str]:
    """Every loss: formula, targets, natural output."""
    from fastnn.tables.losses import LOSSES

    kinds = {
        "real": "any number",
        "nonnegative": "0 or more",
        "unit": "0 to 1",
        "sign": "-1 or 1",
        "classes": "labels, or rows of probabilities",
    }
    rows = [("name", "of one output", "targets t", "natural output")]
    rows += [
        (row.name, row.formula, kinds[row.target_kind], row.natural_output)
        for row in LOSSES.values()
    ]
    return markdown_table(rows)


def optimizer_table() -> list[str]:
    """Every optimizer: class, what it does, defaults."""
    from fastnn.tables.optimizers import OPTIMIZERS

    return markdown_table([("class", "what it does", "defaults"), *described(OPTIMIZERS)])


def schedule_table() -> list[str]:
    """Every schedule with a class of its own: what it computes, defaults."""
    import fastnn
    from fastnn.schedules import SCHEDULES

    public = {name: cls for name, cls in SCHEDULES.items() if cls.__name__ in fastnn.__all__}
    return markdown_table([("class", "what it does", "defaults"), *described(public)])


def described(classes: dict[str, type]) -> list[tuple[str, str, str]]:
    """Name, summary and defaults of settings classes."""
    rows = []
    for cls in classes.values():
        defaults = ", ".join(
            f"{f.name}={f.default}" for f in dataclasses.fields(cls) if f.default is not None
        )
        rows.append((cls.__name__, cls.__doc__.splitlines()[0].replace("``", "`"), defaults))
    return rows


def markdown_table(rows: list[tuple[str, ...]]) -> list[str]:
    """Lines of a table; the first row is its head."""
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return [lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]]


TABLES = {
    "activations": activation_table,
    "losses": loss_table,
    "optimizers": optimizer_table,
    "schedules": schedule_table,
}


def with_tables(text: str) -> str:
    """The page with its tables made anew."""
    lines = text.splitlines()
    for i in reversed(range(len(lines))):
        marked = re.fullmatch(r"<!-- table: (\w+) -->", lines[i])
        if marked:
            end = i + 1
            while end < len(lines) and lines[end].startswith("|"):
                end += 1
            lines[i + 1 : end] = TABLES[marked[1]]()
    return "\n".join(lines) + "\n"


def shrink(source: Path, target: Path) -> None:
    """Write a picture with a palette of its own: a third of the bytes, and no visible loss."""
    from PIL import Image

    with Image.open(source) as image:
        small = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
        small.save(target, optimize=True)


def write_page(page: Path) -> None:
    """Run a page; put its pictures into their folder, and its outputs into its text."""
    with tempfile.TemporaryDirectory() as folder:
        run = run_page(page, Path(folder))
        for picture in sorted(Path(folder).glob("*.png")):
            shrink(picture, PICTURES / picture.name)
            print(f"{picture.name}: {(PICTURES / picture.name).stat().st_size / 1000:.0f} kB")
    lines = page.read_text(encoding="utf-8").splitlines()
    for block in reversed(list(blocks("\n".join(lines)))):
        if block.kind == "output":
            expected, printed, _ = run.outputs.pop()
            if not same_output(expected, printed):
                lines[block.line : block.end] = printed.strip("\n").splitlines()
    page.write_text(with_tables("\n".join(lines)), encoding="utf-8")


def main(prefixes: list[str]) -> None:
    """Write the pages that are asked for."""
    PICTURES.mkdir(exist_ok=True)
    for page in pages():
        if not prefixes or page.name.startswith(tuple(prefixes)):
            print(page.name)
            write_page(page)


if __name__ == "__main__":
    main(sys.argv[1:])
