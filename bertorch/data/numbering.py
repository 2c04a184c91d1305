"""Which texts are equal: each distinct text has a number, and is tokenised once.

Texts are compared by 128 bits of BLAKE2b. That n texts have two different ones of the same hash has a probability of
n²/2¹²⁹, 10⁻¹⁵ for a million million texts, and to make such a pair on purpose takes some 2⁶⁴ hashes. Hashes and numbers
are in arrays that need not fit in memory; what is sorted at once does.
"""

from collections.abc import Iterator
from hashlib import blake2b
from itertools import chain, compress, islice, pairwise

import numpy as np

from bertorch.data.scratch import GrowingArray, zeros
from bertorch.data.texts import Columns, Texts, columns_of
from bertorch.data.tokens import end_to_end

PART = 2**20  # texts, about, that are sorted at once
BLOCK = 2**16  # texts of other work


def numbered(columns: Columns) -> tuple[Iterator[str], np.ndarray]:
    """The distinct texts of S columns of N texts, and (N, S) int64, the number of each text among them, from 0.

    They have the order in which they first come, column by column.

    Raises:
        UserError: the disk is full.
    """
    by_id = {id(column): column for column in columns}  # a column may be there twice
    different = [each if isinstance(each, Texts) else columns_of(zip(each))[0] for each in by_id.values()]
    first = _first_equal(_hashes(chain(*(column.encoded() for column in different))))  # (M,)
    is_first, numbers, count = zeros(first.shape, np.bool_), zeros(first.shape, np.int64), 0
    for block in _blocks(len(first)):
        is_first[block] = first[block] == np.arange(block.start, block.stop)
        numbers[block] = count - 1 + is_first[block].cumsum()  # right for the first ones
        numbers[block] = numbers[first[block]]
        count += int(np.count_nonzero(is_first[block]))
    by_column = numbers.reshape(len(different), -1)
    order = [list(by_id).index(id(column)) for column in columns]
    rows = zeros((by_column.shape[1], len(columns)), np.int64)
    for block in _blocks(len(rows)):
        rows[block] = by_column[order, block].T
    return compress(chain(*different), is_first.data), rows


def in_first_order(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The M different ones of N numbers as they first come, where they do, (M,) each, and each number's place, (N,)."""
    different, first, inverse = np.unique(numbers, return_index=True, return_inverse=True)
    order = np.argsort(first)  # (M,)
    places = np.empty_like(order)
    places[order] = np.arange(len(order))
    return different[order], first[order], places[inverse]


def _blocks(size: int) -> Iterator[slice]:
    return (slice(start, min(start + BLOCK, size)) for start in range(0, size, BLOCK))


def _hashes(encoded: Iterator[memoryview]) -> np.ndarray:
    """(M, 2) uint64."""
    hashes = GrowingArray(np.uint64, (2,))
    while block := [blake2b(text, digest_size=16).digest() for text in islice(encoded, BLOCK)]:
        hashes.append(np.frombuffer(b"".join(block), np.uint64).reshape(-1, 2))
    return hashes.finish()


def _first_equal(hashes: np.ndarray) -> np.ndarray:
    """For each of M hashes the index of the first one that equals it, (M,) int64.

    Hashes with the same remainder are brought together, and each such part is sorted in memory.
    """
    size, parts = len(hashes), -(-len(hashes) // PART)
    bounds = zeros((parts + 1,), np.int64)
    for block in _blocks(size):
        bounds[1:] += np.bincount(_remainders(hashes[block], parts), minlength=parts)
    bounds = bounds.cumsum()  # (parts+1,)
    grouped, indices, ends = zeros(hashes.shape, np.uint64), zeros((size,), np.int64), bounds[:-1].copy()
    for block in _blocks(size):
        part = _remainders(hashes[block], parts)
        counts, order = np.bincount(part, minlength=parts), np.argsort(part, kind="stable")
        places = end_to_end(ends, counts)
        grouped[places], indices[places] = hashes[block][order], block.start + order
        ends += counts
    first = zeros((size,), np.int64)
    for start, end in pairwise(bounds):
        order = _order(grouped[start:end])
        ordered, places = grouped[start:end][order], indices[start:end][order]
        is_new = ~_repeated(ordered)
        first[places] = places[is_new][is_new.cumsum() - 1]
    return first


def _order(hashes: np.ndarray) -> np.ndarray:
    """An order (M,) in which equal hashes, (M, 2), follow each other as they come."""
    order = hashes[:, 0].argsort()
    same = _repeated(hashes[order, :1])
    same[:-1] |= same[1:]  # few: those whose first half another one has
    tied = order[same]
    order[same] = tied[np.lexsort((tied, hashes[tied, 1], hashes[tied, 0]))]
    return order


def _repeated(rows: np.ndarray) -> np.ndarray:
    """Whether each row equals the one before, (rows,) bool."""
    repeated = np.zeros(len(rows), dtype=np.bool_)
    repeated[1:] = (rows[1:] == rows[:-1]).all(axis=1)
    return repeated


def _remainders(hashes: np.ndarray, parts: int) -> np.ndarray:
    return (hashes[:, 0] % np.uint64(parts)).astype(np.uint16)
