"""Run the pages of the guide, and write their pictures and printed outputs.

    python docs/make_guide.py            all pages
    python docs/make_guide.py 03 08      pages whose names begin so

A page is Markdown. Its ``python`` blocks run in order, in one namespace. A ``text`` block right
after one of them is what it prints; a comment ``<!-- check: EXPRESSION -->`` holds the prose before
it to the numbers, and must be true. The tests run the same (tests/guide). Pictures are saved by the
blocks themselves, with ``figure.savefig("name.png")``; here they are made small and put into
docs/guide/pictures.
"""

from __future__ import annotations

import contextlib
import io
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
            for block in blocks(page.read_text(encoding="utf-8")):
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


def same_output(expected: str, printed: str) -> bool:
    """Whether an output is what the page says.

    Words and spaces must agree, numbers to 2 % or one unit of the last digit shown: processors
    without fused multiply-add round differently in the last bits, which long training magnifies.
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
        if abs(float(said) - float(found)) > 1.0001 * unit + 0.02 * abs(float(said)):
            return False
    return True


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
    page.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main(prefixes: list[str]) -> None:
    """Write the pages that are asked for."""
    PICTURES.mkdir(exist_ok=True)
    for page in pages():
        if not prefixes or page.name.startswith(tuple(prefixes)):
            print(page.name)
            write_page(page)


if __name__ == "__main__":
    main(sys.argv[1:])
