"""Stand in for the ``cython`` module where Cython is not installed.

The hot modules ask one thing of it: whether they run compiled. Where Cython is installed its own module of that name
answers, and inside a compiled module the compiler does.
"""

from __future__ import annotations

__all__ = ["compiled"]

compiled = False
