"""Where the time of a run goes, from the command to its last line."""

import os
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

_commands: list[float] = []  # when this process's command began, by `time.monotonic`
_LOADED = time.monotonic()
_USED = time.process_time()  # until then
_WAITED = 2.0  # seconds, at most, for the disk before that


def note_command() -> None:
    """Note that the process runs a command, whose time begins with the process.

    A process that `exec` has made into Python, as the last line of a job's script does, may be older: what came before
    is not its time, but for two seconds.
    """
    _commands[:] = [max(time.monotonic() - _process_age(), _LOADED - _USED - _WAITED)]


def note_run() -> None:
    """Note that another run begins in this process; the time of the command until now is not its own."""
    _commands[:] = [time.monotonic()]


class Clock:
    """The seconds of a run by what they went to; what is not measured went to training.

    The time until `start` was called belongs to the start, and begins with the command, or with the clock where there
    is no command. Parts are measured one at a time.
    """

    def __init__(self) -> None:
        self._began = _commands[0] if _commands else time.monotonic()
        self._seconds: defaultdict[str, float] = defaultdict(float)

    def start(self) -> None:
        """Note that the first step is about to begin."""
        self._seconds["start"] = time.monotonic() - self._began

    @contextmanager
    def measuring(self, part: str) -> Iterator[None]:
        """Add the time of the block to a part."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._seconds[part] += time.monotonic() - began

    def seconds(self) -> Mapping[str, float]:
        """The seconds until now, `total` first, then of each part."""
        total = time.monotonic() - self._began
        start = self._seconds["start"]
        return {"total": total, "start": start, "training": total - sum(self._seconds.values()), **self._seconds}


def _process_age() -> float:
    """Seconds since the process began; 0 where the system does not say."""
    try:
        with open("/proc/self/stat", encoding="ascii", errors="replace") as file:
            ticks = int(file.read().rpartition(")")[2].split()[19])  # field 22: since the system began
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0
