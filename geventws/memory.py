"""Keep freed memory in the process, for servers of large messages or of many new connections.

Strategy: the C library gives a freed block of a megabyte back to the system, and gets another one, page by page, for
the next message; Python does the same with the stack of each greenlet. Both are settings of the whole process, so
nothing changes them but the application.
"""

from __future__ import annotations

try:
    import cython
except ImportError:
    from geventws import _cython as cython

__all__ = ["tune_memory"]

# <malloc.h> of glibc.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
#: The most that glibc takes on 64 bits: larger blocks come from the system each time.
_LARGEST_BLOCK = 32 * 1024 * 1024
#: What fits into a C int.
_MOST_KEPT = 2**31 - 1


def tune_memory(keep: int = 64 * 1024 * 1024) -> bool:
    """Let the process keep freed memory for what comes next, instead of giving it back to the system.

    Call it once, at the start; what is set holds for the whole process. A server that echoes 1 MiB messages needs about
    half the CPU time, and a new connection of the compiled build a tenth less; the resident memory falls later after
    a peak.

    Args:
        keep: Octets of freed memory that may stay at the end of the heap.

    Returns:
        Whether the C library could be told (glibc); elsewhere nothing changes.

    Raises:
        TypeError: ``keep`` is no int.
        ValueError: ``keep`` is negative, or above 2 GiB - 1.
    """
    if not isinstance(keep, int) or isinstance(keep, bool):
        raise TypeError(f"keep must be an int, not {type(keep).__name__}")
    if not 0 <= keep <= _MOST_KEPT:
        raise ValueError(f"keep must be 0 to {_MOST_KEPT} octets, not {keep}")
    if cython.compiled:
        return bool(geventws_keep_memory(keep))  # type: ignore[name-defined]  # noqa: F821
    return _keep_memory(keep)


def _keep_memory(size: int) -> bool:
    """Do what the compiled build does in C, but for the stacks of greenlets."""
    try:
        # Not at the top: a Python may lack it, and few call this.
        from ctypes import CDLL  # noqa: PLC0415

        mallopt = CDLL(None).mallopt
    except (ImportError, OSError, AttributeError, TypeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST_BLOCK) and mallopt(_M_TRIM_THRESHOLD, size))
