"""SIGTERM and Ctrl-C stop a run after the step, not in the middle of it."""

import os
import signal
import time
from types import FrameType

from loguru import logger

from bertorch import distributed

STEPS_BETWEEN_CHECKS_ON_GPUS = 10  # since asking the other processes synchronises the device
# Seconds in which a launcher passes on a signal that all processes of its job got with it.
FORWARDED_WITHIN = 5.0


class Interruption:
    """Catches the first SIGTERM or Ctrl-C in its context; the second one ends the process, also in a save.

    Under a launcher the first may come twice, once from whoever sent it to all processes and once from the launcher. A
    signal that is ignored, as Ctrl-C is under nohup, stays so.
    """

    _SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self._came: signal.Signals | None = None
        self._since = 0.0  # by the monotonic clock
        self._is_told = False
        on_gpus = distributed.world_size() > 1 and distributed.device().type == "cuda"
        self._interval = STEPS_BETWEEN_CHECKS_ON_GPUS if on_gpus else 1

    def __enter__(self) -> "Interruption":
        handlers = {number: signal.getsignal(number) for number in self._SIGNALS}
        self._handlers = {number: known for number, known in handlers.items() if known is not signal.SIG_IGN}
        for number in self._handlers:
            signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def requested(self, global_step: int) -> bool:
        """Whether any process was asked to stop; all processes must call it after the same steps."""
        if self._came is not None and not self._is_told:
            self._is_told = True  # not in the handler, which may run in the middle of a line of the log
            logger.warning("{}: stops after this step; once more ends it at once", self._came.name)
        return global_step % self._interval == 0 and distributed.any_process(self._came is not None)

    def came_late(self) -> bool:
        """Whether any process was asked to stop, also after the last step; all processes must call it."""
        return distributed.any_process(self._came is not None)

    def _note(self, number: int, _: FrameType | None) -> None:
        is_first, now = self._came is None, time.monotonic()
        if is_first:
            self._came, self._since = signal.Signals(number), now
            if distributed.has_launcher():
                return
        for each in self._handlers:  # nothing that is being written is waited for
            signal.signal(each, signal.SIG_DFL)
        if not is_first and now > self._since + FORWARDED_WITHIN:
            os.kill(os.getpid(), number)
