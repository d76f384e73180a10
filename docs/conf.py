"""Configuration of Sphinx: every page is checked, and each warning fails the build (``make docs``)."""

from __future__ import annotations

from importlib.metadata import version as find_version

project = "geventws"
author = "geventws contributors"
copyright = f"2026, {author}"
release = find_version("geventws")
version = release

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
default_role = "py:obj"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False

html_theme = "alabaster"
html_title = f"geventws {release}"
html_theme_options = {"description": "WebSocket for gevent's pywsgi", "fixed_sidebar": True}
html_show_sourcelink = False
