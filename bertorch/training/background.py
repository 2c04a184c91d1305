"""Saves in the background: a thread writes what was copied at the end of a step, while training goes on.

Only the first process saves. One save is written at a time. A regular save that falls due while another is written, or
too soon after the one before, is left to the next time it is due; nothing is lost by it but the seconds in between,
since a run goes on bit for bit from any of its checkpoints.
"""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from loguru import logger

from bertorch.errors import UserError
from bertorch.training.snapshot import HostMemory

Write = Callable[[], None]

_last_written = [-math.inf]  # by `time.perf_counter`; infinity meanwhile


def wrote_since(moment: float) -> bool:
    """Whether a save of this process was being written at any time since then, by `time.perf_counter`."""
    return _last_written[0] > moment


class BackgroundSaver:
    """Writes saves in order, in a thread.

    Args:
        interval: seconds between two regular saves at least; with 0 each is made when it is due, and training waits
            for the one before.
    """

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._last = -math.inf  # when the last regular save began, by `time.monotonic`
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="saves")
        self._writing: list[Future[None]] = []
        self._newest: dict[str, Future[None]] = {}  # by kind
        self._free: defaultdict[str, list[HostMemory]] = defaultdict(list)  # by kind

    def takes(self, *, must: bool) -> bool:
        """Whether a regular save is made now; one that must be made waits for the one before.

        Raises:
            UserError: an earlier save could not be written.
        """
        self.check()
        since = time.monotonic() - self._last
        if not must and (since < self._interval or (self._writing and since < 2 * self._interval)):
            return False
        # Also best weights that follow each other quickly must not keep a checkpoint from being written.
        self.wait()
        self._last = time.monotonic()
        return True

    def memory(self, kind: str) -> HostMemory:
        """Memory to copy into, which no save of this kind reads at present; give it to `write`."""
        memory = self._free[kind].pop() if self._free[kind] else HostMemory()
        memory.begin()
        return memory

    def write(self, kind: str, memory: HostMemory, writes: Sequence[Write], *, replaces: bool = False) -> None:
        """Write a save, one file or folder after the other, when those before it are written.

        Args:
            kind: saves of one kind have the same tensors.
            memory: with the copies that `writes` read.
            writes: write the save.
            replaces: whether an earlier one of this kind that has not begun is dropped.
        """
        if replaces and kind in self._newest:
            self._newest[kind].cancel()

        def wait_and_write() -> None:
            memory.wait()
            _last_written[0] = math.inf
            try:
                for write in writes:
                    write()
            finally:
                _last_written[0] = time.perf_counter()

        future = self._thread.submit(wait_and_write)
        future.add_done_callback(lambda _: self._free[kind].append(memory))
        self._newest[kind] = future
        self._writing.append(future)

    def check(self) -> None:
        """Forget what is written.

        Raises:
            UserError: a save could not be written.
        """
        done = [future for future in self._writing if future.done()]
        self._writing = [future for future in self._writing if future not in done]
        for future in done:
            if not future.cancelled():
                future.result()

    def wait(self) -> None:
        """Wait until everything is written.

        Raises:
            UserError: a save could not be written.
        """
        for future in self._writing:
            if not future.cancelled():
                future.exception()
        self.check()

    def close(self) -> None:
        """As `wait`, but an error is logged; for a run that ends by another error."""
        try:
            self.wait()
        except UserError as error:
            logger.error("{}", error)
        self._thread.shutdown()
