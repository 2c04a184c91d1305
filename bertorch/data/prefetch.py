"""Results computed ahead in a thread, so that the next batch is ready when the device needs it."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from typing import TypeVar

T = TypeVar("T")
U = TypeVar("U")

AHEAD = 4


def prefetched(make: Callable[[T], U], items: Iterable[T], ahead: int = AHEAD) -> Generator[U]:
    """Like `map(make, items)`, but a thread computes the next `ahead` results while the last one is used.

    Items are read as far ahead. An error of `make` is raised in place of its result. There is no thread for a single
    item, such as one text that waits for its answer: nothing would run beside it.
    """
    remaining = iter(items)
    first = list(islice(remaining, 2))
    if len(first) < 2:
        yield from map(make, first)
        return
    remaining = chain(first, remaining)
    waiting: deque[Future[U]] = deque()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch") as thread:
        waiting.extend(thread.submit(make, item) for item in islice(remaining, ahead))
        try:
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(thread.submit(make, item) for item in islice(remaining, 1))
                yield result
        finally:  # also where the caller stops early
            for future in waiting:
                future.cancel()
