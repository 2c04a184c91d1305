"""bertorch: fine-tuning of BERT-family encoders on packed batches."""

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bertorch.inference.load import load as load

__version__ = "0.1.0"
__all__ = ["load"]

_ROOT = Path(__file__).resolve().parents[1]
_SCRIPTS = {_ROOT / f"run_{name}.py" for name in ("classifier", "sentencebert", "simcse", "batchneg", "ner")}
_PROGRAMS = _SCRIPTS | {_ROOT / "data" / "prepare.py"}


def _is_command() -> bool:
    """Whether this process was started as one of our scripts or commands, and does not only import us."""
    started = next(iter(sys.argv), "")
    if started == "-m":  # what Python has there while it imports the package of a module to run
        return any(word.startswith("bertorch.") for word in sys.orig_argv)
    return Path(started).resolve() in _PROGRAMS  # not a user's program of the same name


if _is_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Imports take seconds, and a KeyboardInterrupt in one is a traceback. `errors.exit_on_user_error` takes this back.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def __getattr__(name: str) -> Any:
    if name == "load":  # imported when asked for: the ground floor is in this package too, and needs no model
        from bertorch.inference.load import load  # noqa: PLC0415

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
