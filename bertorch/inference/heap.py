"""Memory that is free but still the process's: glibc keeps it, in pieces that batches of other shapes do not fill."""

import ctypes
import os
from contextlib import suppress
from pathlib import Path

_GROWTH = 2**26  # bytes by which the process may grow before its free memory goes back to the system
_STATM = Path("/proc/self/statm")  # sizes in pages; the second is what is in memory


class _Heap:
    """Returns free memory to the system when the process has grown; does nothing without Linux and glibc."""

    def __init__(self) -> None:
        self._malloc_trim = None
        with suppress(OSError, AttributeError):
            self._malloc_trim = ctypes.CDLL(None).malloc_trim if _STATM.exists() else None
        self._size = 0  # of the process after the last trim

    def trim(self) -> None:
        """Call it after work whose temporary memory is free again."""
        if self._malloc_trim is not None and _resident() > self._size + _GROWTH:
            self._malloc_trim(0)
            self._size = _resident()


HEAP = _Heap()  # of the process


def _resident() -> int:
    return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
