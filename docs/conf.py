"""Sphinx: the guide and decisions in Markdown, the reference from numpydoc docstrings."""

from importlib.metadata import version as distribution_version

project = "fastnn"
author = "fastnn developers"
copyright = f"2026, {author}"
release = distribution_version("fastnn-mlp")
version = ".".join(release.split(".")[:2])

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
root_doc = "index"
exclude_patterns = ["_build", "adr/README.md", "guide/README.md"]
suppress_warnings = ["myst.header", "myst.xref_missing"]

autosummary_generate = True
numpydoc_show_class_members = False
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

html_theme = "alabaster"
html_theme_options = {
    "description": "Perceptrons at the speed of the machine",
    "page_width": "64em",
}
html_static_path: list[str] = []
