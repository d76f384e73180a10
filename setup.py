"""Build geventws: the hot modules are compiled where that is possible, and run as plain Python elsewhere.

Everything that is data stands in ``pyproject.toml``; only the choice between the two builds is made here.
The environment variable ``GEVENTWS_BUILD`` makes it:

* unset: compile, and without a C compiler, Python's headers or Cython install the plain build and say so in one line;
* ``compiled``: a failure to compile is an error;
* ``plain``: compile nothing.

All the modules of `HOT_MODULES` are compiled or none is: they share C types through their ``.pxd`` files. The ``.py``
files are installed beside them either way, for tracebacks and for reading. PyPy, whose own compiler is better at this,
gets the plain build.
"""

from __future__ import annotations

import os
import platform
import sys
import sysconfig
import textwrap
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

PACKAGE = "geventws"
HOT_MODULES = (
    "memory",
    "masking",
    "frames",
    "inbox",
    "protocol",
    "prepared",
    "events",
    "sockets",
    "dispatch",
    "budget",
    "transport",
    "endpoint",
    "deadlines",
    "sending",
    "delivery",
    "connection",
)
DIRECTIVES = {
    "language_level": 3,
    # The C types come from the .pxd files alone; annotations are for mypy.
    "annotation_typing": False,
    # Without it a compiled function is a Python object with a dictionary, and slower to call.
    "binding": False,
}


def choose_build() -> str:
    """Return ``"plain"``, ``"compiled"`` or ``"try"``."""
    wanted = os.environ.get("GEVENTWS_BUILD", "")
    if wanted not in {"", "plain", "compiled"}:
        raise SystemExit(f"GEVENTWS_BUILD is {wanted!r}; it can be 'plain', 'compiled' or unset")
    if platform.python_implementation() == "PyPy":
        return "plain"
    return wanted or "try"


def list_extensions() -> list[Extension]:
    """Return one extension for each hot module, its source still Python.

    Raises:
        SystemExit: A source is missing; the plain build must not hide that.
    """
    sources = {module: f"{PACKAGE}/{module}.py" for module in HOT_MODULES}
    headers = [path.as_posix() for path in sorted(Path(PACKAGE).glob("*.h"))]
    wanted = [*sources.values(), *(source.replace(".py", ".pxd") for source in sources.values())]
    if missing := [path for path in wanted if not Path(path).is_file()]:
        raise SystemExit(f"cannot build without {', '.join(missing)}")
    return [
        Extension(
            f"{PACKAGE}.{module}",
            [source],
            include_dirs=[PACKAGE],
            depends=["setup.py", *headers],
            extra_compile_args=[] if sys.platform == "win32" else ["-O3"],
        )
        for module, source in sources.items()
    ]


def locate_extensions(folder: str) -> list[Path]:
    """Return where the compiled modules are when the package lies in ``folder``."""
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    return [Path(folder, PACKAGE, f"{module}{suffix}") for module in HOT_MODULES]


class BuildPackage(build_py):
    """Copy the Python files, after those of an earlier build are gone.

    A build directory outlives a build; without this a module that was removed or renamed would be installed for ever.
    Compiled files are kept, for `BuildExtensions` makes only those again whose source changed.
    """

    def run(self) -> None:
        """Empty the package's part of the build directory, then copy."""
        kept = locate_extensions(self.build_lib) if self.distribution.ext_modules else []
        for path in Path(self.build_lib, PACKAGE).rglob("*"):
            if path.is_file() and path not in kept:
                path.unlink()
        super().run()


class BuildExtensions(build_ext):
    """Compile all extensions, or leave nothing of them behind and go on."""

    def run(self) -> None:
        """Build, and notice first whether the result belongs in the source tree (an editable installation)."""
        self.in_source_tree = bool(self.inplace)
        super().run()

    def build_extensions(self) -> None:
        """Turn every extension into C, then into a module."""
        self.parallel = self.parallel or os.cpu_count()
        try:
            self.translate()
            super().build_extensions()
        except Exception as error:
            # Cython, the compiler and the linker each have exceptions of their own, and so has the system.
            if choose_build() == "compiled":
                raise
            self.remove_extensions()
            reason = textwrap.shorten(f"{type(error).__name__}: {error}", 160, placeholder=" ...")
            print(f"geventws: installing the plain Python build, nothing could be compiled: {reason}", file=sys.stderr)

    def translate(self) -> None:
        """Replace each extension's Python source by the C file that Cython makes of it."""
        from Cython.Build import cythonize

        made = cythonize(
            self.extensions,
            build_dir="build/cython",
            compiler_directives=DIRECTIVES,
            quiet=True,
        )
        by_name = {extension.name: extension for extension in made}
        for extension in self.extensions:
            extension.sources = by_name[extension.name].sources
            extension.depends = by_name[extension.name].depends

    def remove_extensions(self) -> None:
        """Delete what was compiled, also by an earlier build, so that the modules are never mixed."""
        for folder in [self.build_lib, *([""] if self.in_source_tree else [])]:
            for path in locate_extensions(folder):
                path.unlink(missing_ok=True)
        self.extensions: list[Extension] = []


setup(
    ext_modules=[] if choose_build() == "plain" else list_extensions(),
    cmdclass={"build_py": BuildPackage, "build_ext": BuildExtensions},
)
