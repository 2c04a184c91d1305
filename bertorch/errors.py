"""Errors that the user can fix, and the one that a stopped run raises."""

import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from loguru import logger


class UserError(Exception):
    """A wrong option, file or checkpoint.

    The message says what was expected, what came, where, and what to do. A script prints it without a traceback and
    ends with exit code 2, as argparse does for a wrong command line.
    """


class ShapeMismatchError(UserError):
    """Weights whose shapes are not those of the model.

    `source` is the option and file or folder that the weights come from, `remedy` what to do.
    """

    def __init__(
        self,
        source: str,
        tensors: Iterable[tuple[str, Sequence[int], Sequence[int]]],
        remedy: str = "Use weights of the same encoder; a head (classifier.…) must be of the same script and have as "
        "many outputs as there are labels.",
    ) -> None:
        lines = [f"  {name}: expected {tuple(expected)}, got {tuple(got)}" for name, expected, got in tensors]
        super().__init__(
            "\n".join([f"{source}: tensors of another shape than the model's: {len(lines)}", *lines, remedy])
        )


class NotFiniteError(UserError):
    """Results that are NaN or infinite: weights have diverged, or half precision has overflowed."""


class ConstantScoresError(UserError):
    """Scores that are all the same, so that nothing can be ranked by them."""


class InterruptedRunError(Exception):
    """A run stopped because a signal asked it to; `goes_on` is whether it left something to go on from."""

    def __init__(self, message: str, *, goes_on: bool) -> None:
        super().__init__(message)
        self.goes_on = goes_on


@contextmanager
def exit_on_user_error(rank: int = 0) -> Iterator[None]:
    """Log a `UserError` without a traceback and exit; other processes than the first log its first line only.

    Raises:
        SystemExit: code 2 for a `UserError`, 130 for Ctrl-C, which unwinds: unfinished files are removed.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # while the program was imported
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except UserError as error:
        logger.error("{}", error if rank == 0 else f"process {rank}: {str(error).splitlines()[0]}")
        sys.exit(2)
