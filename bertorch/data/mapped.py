"""Reading arrays that are mapped into memory, in the way that suits the disk."""

import mmap
from typing import Any

import numpy as np

SMALL = 2**28  # bytes of an array that few misses bring into memory, each with its neighbours


def announce_reading(array: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> None:
    """Say that the items `start : end` of each range, (ranges,) int64, are read next.

    Of a large array that is mapped from a file, the system then fetches what is not in memory, all pages at the same
    time. Otherwise each page is waited for by itself, and comes with many neighbours that nobody needs.
    """
    mapped = _mapping(array) if array.nbytes > SMALL else None
    if mapped is None:
        return
    starts, chosen = np.unique(starts, return_index=True)
    before = _address(array) - _address(np.frombuffer(mapped, np.uint8, count=1))
    first = (before + starts * array.itemsize) // mmap.PAGESIZE * mmap.PAGESIZE
    sizes = before + ends[chosen] * array.itemsize - first
    for start, size in zip(first.tolist(), sizes.tolist(), strict=True):
        mapped.madvise(mmap.MADV_WILLNEED, start, size)


def _mapping(array: np.ndarray) -> mmap.mmap | None:
    """The map that the one-dimensional array is a part of."""
    owner: Any = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    if isinstance(owner, memoryview):
        owner = owner.obj
    return owner if isinstance(owner, mmap.mmap) else None


def _address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]
