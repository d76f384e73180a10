"""Configuration of Sphinx: every page is checked, and each warning fails the build (``make docs``)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import geventws

if TYPE_CHECKING:
    from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parent))

project = "geventws"
author = "geventws contributors"
copyright = f"2026, {author}"
release = geventws.__version__
version = release

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
default_role = "py:obj"

# Links into a page, down to its smaller headings.
myst_heading_anchors = 3

# Only an application's own objects have a constructor to show; the others come from accept and connect.
autodoc_class_signature = "separated"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False

html_static_path = ["_static"]
html_theme = "alabaster"
html_title = f"geventws {release}"
html_theme_options = {
    "description": "WebSocket for gevent's pywsgi",
    "fixed_sidebar": True,
    "page_width": "1160px",
    "body_max_width": "none",
}
html_show_sourcelink = False


def setup(app: Sphinx) -> None:
    """Let the tables of options be made while the pages are read."""
    from options_tables import insert_tables  # noqa: PLC0415 - it lies beside this file, which only now is on the path

    def change_page(_app: Sphinx, _page: str, source: list[str]) -> None:
        source[0] = insert_tables(source[0])

    app.connect("source-read", change_page)
