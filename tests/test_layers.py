"""An import only ever points down, and what stands low does no input and output."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import geventws

PACKAGE = Path(geventws.__file__).parent

# From the ground up: each module, and what is in a row above it, may import the rows below.
HOUSE = [
    (0, "_version _cython errors"),
    (0, "masking"),
    (0, "memory"),
    (1, "frames headers"),
    (1, "cookies proxies"),
    (2, "deflate handshake inbox trace"),
    (3, "protocol"),
    (3, "prepared"),
    (4, "budget checks events sockets"),
    (4, "config"),
    (5, "dispatch"),
    (5, "transport"),
    (5, "endpoint"),
    (5, "deadlines"),
    (5, "sending"),
    (5, "delivery"),
    (5, "connection"),
    (6, "registry"),
    (6, "host request client"),
    (7, "head"),
    (7, "handler"),
    (8, "server"),
    (9, "__init__"),
    (9, "demo"),
    (9, "cli"),
    (9, "__main__"),
    (9, "integrations.__init__"),
    (9, "integrations.gunicorn"),
]
ROWS = {module: row for row, (_, modules) in enumerate(HOUSE) for module in modules.split()}
LEVELS = {module: level for level, modules in HOUSE for module in modules.split()}
IO = {
    *("_socket", "_ssl", "_thread", "asyncio", "concurrent", "gevent", "greenlet", "select", "selectors", "signal"),
    *("socket", "ssl", "subprocess", "threading", "time"),
}

MODULES = sorted(".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in PACKAGE.rglob("*.py"))


def list_imports(module):
    """Return the full names of what a module imports when it runs, and of what its Cython part ``cimport``s."""
    path = PACKAGE.joinpath(*module.split(".")).with_suffix(".py")
    names = set(walk(ast.parse(path.read_text(encoding="utf-8"))))
    if path.with_suffix(".pxd").exists():
        declarations = path.with_suffix(".pxd").read_text(encoding="utf-8")
        names |= {
            f"geventws.{name}" for name in re.findall(r"^from geventws\.(\w+) cimport", declarations, re.MULTILINE)
        }
        names |= {
            f"geventws.{name}" for name in re.findall(r"^from geventws cimport (\w+)", declarations, re.MULTILINE)
        }
    return names


def walk(node):
    """Yield the full name of each import below a node, those for type checkers excepted."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert not child.level, f"line {child.lineno}: imports name the package"
            if child.module == "geventws":
                yield from (f"geventws.{alias.name}" for alias in child.names)
            else:
                yield child.module
        else:
            yield from walk(child)


def list_own_imports(module):
    names = {name.partition(".")[2] for name in list_imports(module) if name.startswith("geventws.")}
    # What the package itself exports comes from its top, and is for those above it.
    return {name if name in ROWS else "__init__" for name in names}


def test_every_module_has_its_place():
    assert set(MODULES) <= set(ROWS)


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module):
    assert [name for name in list_own_imports(module) if ROWS[name] >= ROWS[module]] == []


@pytest.mark.parametrize("module", [module for module in MODULES if LEVELS[module] <= 3])
def test_levels_0_to_3_do_no_io(module):
    assert {name.partition(".")[0] for name in list_imports(module)} & IO == set()


# Guards of this file's own eyes: were `walk` blind, everything would pass.
def test_imports_are_seen():
    assert {"frames", "masking", "errors"} <= list_own_imports("protocol")
    assert "_ssl" in list_imports("sockets")
    assert "sockets" in list_own_imports("transport")
    assert "gevent.pywsgi" in list_imports("handler")
    assert "geventws.dispatch" in list_imports("transport")
