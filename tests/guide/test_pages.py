"""Every page: its code runs, prints what it says, and draws the pictures that it shows."""

import re

import numpy as np
import pytest
from PIL import Image

from fastnn.backends import _native

MAX_PICTURE_BYTES = 60_000

# Without fused multiply-add the last bits differ, which a long training can magnify.
TOLERANCE = 0.3 if _native.isa() == "baseline" else 0.02


def shown_pictures(text):
    """Alternative texts and paths of a page's pictures."""
    return re.findall(r"!\[([^\]]*)\]\((.*?)\)", text, re.DOTALL)


def test_code_runs_and_prints_what_the_page_says(page, guide, run_page):
    run, _ = run_page(page.stem)  # its checks are asserted on the way
    assert len(run.outputs) == sum(
        block.kind == "output" for block in guide.blocks(page.read_text("utf-8"))
    )
    for expected, printed, line in run.outputs:
        assert guide.same_output(expected, printed, TOLERANCE), (
            f"{page.name}:{line + 1} says\n{expected}\nbut the code prints\n{printed}"
        )


def test_pictures_shown_are_those_that_the_code_draws(page, guide, run_page):
    _, folder = run_page(page.stem)
    shown = shown_pictures(page.read_text("utf-8"))
    assert {path for _, path in shown} == {f"pictures/{p.name}" for p in folder.glob("*.png")}
    for text, path in shown:
        assert len(text) > 40, f"{path} needs a text for readers who cannot see it"
        picture = page.parent / path
        assert picture.stat().st_size < MAX_PICTURE_BYTES
        with Image.open(picture) as kept, Image.open(folder / picture.name) as drawn:
            assert kept.format == "PNG"
            assert np.asarray(kept.convert("L")).std() > 5, "blank"
            # Fonts differ by a few pixels from one version of matplotlib to the next.
            assert np.allclose(kept.size, drawn.size, rtol=0.1)


def test_every_kept_picture_is_shown(guide):
    shown = {path for page in guide.pages() for _, path in shown_pictures(page.read_text("utf-8"))}
    assert shown == {f"pictures/{path.name}" for path in guide.PICTURES.iterdir()}


def test_no_code_hides_from_the_tests(page, guide):
    """A fence of another language, or an indented one, would not be run."""
    text = page.read_text("utf-8")
    fences = [line for line in text.splitlines() if line.lstrip().startswith("```")]
    assert set(fences) == {"```", "```python", "```text"}
    kinds = [block.kind for block in guide.blocks(text)]
    assert fences.count("```python") == kinds.count("python") > 0
    assert fences.count("```text") == kinds.count("output")
    assert "import fastnn" in text


def test_tables_are_those_of_the_package(page, guide):
    text = page.read_text("utf-8")
    assert guide.with_tables(text) == text


def test_all_tables_are_shown(guide):
    text = "".join(page.read_text("utf-8") for page in guide.pages())
    shown = re.findall(r"^<!-- table: (\w+) -->$", text, re.MULTILINE)
    assert sorted(shown) == sorted(guide.TABLES)


def test_pages_lead_from_one_to_the_next(guide):
    pages = guide.pages()
    index = (guide.GUIDE / "README.md").read_text("utf-8")
    listed = re.findall(r"^\d+\. \[.*?\]\((.*?)\)", index, re.MULTILINE)
    assert listed == [page.name for page in pages]
    for number, page in enumerate(pages, start=1):
        text = page.read_text("utf-8")
        assert text.startswith(f"# {number}. ")
        last = text.rstrip().splitlines()[-1]
        if number > 1:
            assert f"({pages[number - 2].name})" in last
        if number < len(pages):
            assert f"({pages[number].name})" in last


def test_lines_are_not_long(page):
    for line in page.read_text("utf-8").splitlines():
        assert len(line) <= 130 or line.startswith(("|", "![")), line


@pytest.mark.parametrize(
    ("expected", "printed", "same"),
    [
        ("loss 0.50", "loss 0.50", True),
        ("loss 0.50", "loss 0.51", True),  # one unit of the last digit
        ("loss 0.50", "loss 0.53", False),
        ("loss 0.50", "gain 0.50", False),
        ("right: 77", "right: 78", True),
        ("right: 77", "right: 80", False),
        ("right: 100", "right:  99", True),
        ("1000", "1019", True),  # 2 %
        ("1000", "1030", False),
        ("[-0.1  0.2]", "[ 0.0  0.2]", True),
        ("[0.1 0.2]", "[0.1 0.2 0.3]", False),
        ("3e+306", "4e+306", True),
        ("3e+306", "3e+305", False),
        ("x1 = 2", "x2 = 2", False),  # a digit in a name is no number
        ("True", "False", False),
    ],
)
def test_same_output(guide, expected, printed, same):
    assert guide.same_output(expected, printed) == same


def test_a_wrong_page_is_found(guide, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "```python\nx = 1\nprint(x)\n```\n\n```text\n3\n```\n\n<!-- check: x == 1 -->\n"
    )
    ((expected, printed, line),) = guide.run_page(page, tmp_path).outputs
    assert (expected, printed, line) == ("3", "1\n", 3)
    assert not guide.same_output(expected, printed)
    page.write_text("```python\nx = 1\n```\n\n<!-- check: x ==\n     2 -->\n")
    with pytest.raises(AssertionError, match=r"page\.md:5: not so: x =="):
        guide.run_page(page, tmp_path)
    page.write_text("\n\n```python\n1 / 0\n```\n")
    with pytest.raises(ZeroDivisionError) as error:
        guide.run_page(page, tmp_path)
    assert error.traceback[-1].lineno == 3  # counted from 0: the line in the page
