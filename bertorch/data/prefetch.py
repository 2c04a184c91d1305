"""Work done ahead in a thread, so that the next batch is ready when the device asks for it."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
U = TypeVar("U")

AHEAD = 4


def prefetched(make: Callable[[T], U], items: Iterable[T], ahead: int = AHEAD) -> Generator[U]:
    """Like `map(make, items)`, but the next results are worked out in a thread while the last one is used.

    Args:
        make: from an item to a result; what it raises is raised where its result would have come.
        items: read as far ahead as results are.
        ahead: results that are worked out before they are asked for.
    """
    remaining = iter(items)
    waiting: deque[Future[U]] = deque()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch") as thread:
        waiting.extend(thread.submit(make, item) for item in islice(remaining, ahead))
        try:
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(thread.submit(make, item) for item in islice(remaining, 1))
                yield result
        finally:  # also where the reader has stopped early
            for future in waiting:
                future.cancel()
