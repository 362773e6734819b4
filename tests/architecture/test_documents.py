"""What README, CONTRIBUTING and the decisions say is so: commands, examples, names, links."""

import re
import shlex
import subprocess
import sys
import tomllib

import pytest

from fastnn.cli import build_parser
from fastnn.tables.activations import ACTIVATIONS, LINKS
from fastnn.tables.losses import LOSSES
from fastnn.tables.optimizers import OPTIMIZERS


@pytest.fixture(scope="module")
def readme(root):
    return (root / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def project(root):
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(text):
    return [line for block in blocks(text, "sh") for line in block.splitlines() if line.strip()]


def table_row(text, name):
    return re.search(rf"^\| {name} \| (.*?) \|$", text, re.MULTILINE)[1]


def words(text):
    return set(re.findall(r"[A-Za-z_]+", text))


def test_readme_opens_with_the_two_commands(readme):
    assert commands(readme)[:2] == [
        "pip install . && fastnn demo",
        "pip install '.[test]' && pytest",
    ]


def test_readme_commands_parse(readme):
    lines = [line for line in commands(readme) if line.startswith("fastnn ")]
    assert {line.split()[1] for line in lines} == {"train", "predict", "info"}
    for line in lines:
        build_parser().parse_args(shlex.split(line)[1:])  # SystemExit where it does not fit


def test_readme_names_every_command(readme):
    actions = build_parser()._subparsers._group_actions
    for name in actions[0].choices:
        assert f"fastnn {name}" in readme


def test_readme_example(readme, tmp_path):
    (code,) = blocks(readme, "python")
    assert len([line for line in code.splitlines() if line.strip()]) == 5
    run = subprocess.run(
        [sys.executable, "-P", "-W", "error", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert float(run.stdout.removeprefix("accuracy")) > 0.9
    assert list(tmp_path.iterdir()) == []


def test_readme_lists_what_the_tables_hold(readme):
    activations = words(table_row(readme, "activations")) - {"outputs", "also", "and"}
    assert activations == set(ACTIVATIONS) | set(LINKS)
    assert words(table_row(readme, "losses")) == set(LOSSES)
    optimizers = words(table_row(readme, "optimizers"))
    assert {name.lower() for name in optimizers} == set(OPTIMIZERS)


def test_extras_that_documents_name_exist(root, readme, project):
    extras = set(project["optional-dependencies"])
    contributing = (root / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = readme.split("## Extras")[1].split("\n## ")[0]
    named = set(re.findall(r"`?\[([a-z]+)\]`?(?!\()", section))
    assert named == {"plot", "lbfgs", "sklearn", "all", "cuda"}
    assert named <= extras
    section = contributing.split("## Extras")[1].split("\n## ")[0].partition("come with")[0]
    assert extras <= set(re.findall(r"`([a-z]+)`", section))


def test_extras_ask_for_themselves_consistently(project):
    extras = project["optional-dependencies"]
    for requirements in extras.values():
        for requirement in requirements:
            own = re.match(r"fastnn-mlp\[(.+)\]", requirement)
            if own:
                assert set(own[1].split(",")) <= set(extras)
    assert project["scripts"] == {"fastnn": "fastnn.cli:entry_point"}


def test_links_lead_somewhere(root):
    documents = [*root.glob("*.md"), *(root / "docs").rglob("*.md"), *(root / "csrc").glob("*.md")]
    assert len(documents) > 10
    for document in documents:
        text = document.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#\s]+)\)", text):
            if "://" not in target:
                assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_every_decision_is_listed(root):
    folder = root / "docs" / "adr"
    listed = re.findall(r"\((\d{4}-[\w-]+\.md)\)", (folder / "README.md").read_text("utf-8"))
    assert listed == sorted(path.name for path in folder.glob("[0-9]*.md"))
    for number, name in enumerate(listed, start=1):
        text = (folder / name).read_text("utf-8")
        assert name.startswith(f"{number:04d}-")
        assert text.startswith(f"# {number}. ")
        assert re.search(r"^Status: (accepted|superseded by \d{4})$", text, re.MULTILINE)
        assert "**Decision.**" in text
        assert "**Consequences.**" in text


def test_the_changelog_knows_the_public_names(root):
    """The first release lists what it offers."""
    import fastnn

    text = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    for name in ("Perceptron", "MLP", "Trainer", "find_learning_rate", "History", "show_config"):
        assert hasattr(fastnn, name)
        assert name in text
