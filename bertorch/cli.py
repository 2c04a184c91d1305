"""Command line of the scripts: dataclass fields become argparse options, mistakes become exit code 2."""

import argparse
import os
import shlex
import signal
import sys
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, fields
from typing import Any, TypeVar

import torch
from loguru import logger

from bertorch import distributed, log
from bertorch.config import LaunchedConfig, TrainingConfig
from bertorch.errors import InterruptedRunError, UserError, mistakes_told

INTERRUPTED = 75  # EX_TEMPFAIL of sysexits.h: try again later

C = TypeVar("C", bound=LaunchedConfig)
T = TypeVar("T", bound=TrainingConfig)


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, and the script's docstring as it is written."""


def parse(config_class: type[C], argv: Sequence[str] | None = None, description: str | None = None) -> C:
    """Parse a command line into a config.

    Args:
        config_class: the dataclass whose fields are the options.
        argv: the arguments, by default those of the process.
        description: the text over `--help`.

    Raises:
        SystemExit: code 2 with the reason, as argparse does, also for options that contradict each other.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=_HelpFormatter, allow_abbrev=False)
    types_of = typing.get_type_hints(config_class)
    for declared in fields(config_class):
        _add_option(parser, declared, _plain_type(types_of[declared.name]))
    arguments = vars(parser.parse_args(argv))
    try:
        return config_class(**arguments)
    except UserError as error:
        parser.error(str(error))


def command(config_class: type[C], run: Callable[[C], None], description: str | None) -> None:
    """The whole of a command: parse, join the other processes, run, and tell the user's mistakes without a traceback.

    Raises:
        SystemExit: code 2 for a mistake of the user, 1 where no one reads the output any more, 128 and its number after
            a signal.
    """
    config = parse(config_class, description=description)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # what is half written is cleared away
    try:
        with mistakes_told(distributed.launched_rank()), distributed.session(config.local_rank):
            log.setup()
            run(config)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left to write has no reader either
        sys.exit(1)


def main(config_class: type[T], run: Callable[[T], None], description: str | None) -> None:
    """The whole of a script: as `command`, and what a training run needs.

    Raises:
        SystemExit: code 2 for a mistake of the user, 75 for a run that a signal stopped, with how to go on.
    """
    config = parse(config_class, description=description)
    if config.deterministic:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # as cuBLAS asks, before it is first used
        torch.use_deterministic_algorithms(mode=True)
    try:
        with mistakes_told(distributed.launched_rank()), distributed.session(config.local_rank):
            log.setup()
            torch.manual_seed(config.seed)  # fresh weights are the same on every process
            run(config)
    except InterruptedRunError as stopped:
        if distributed.launched_rank() == 0:
            logger.warning("{}", _how_to_go_on(stopped, config))
        sys.exit(INTERRUPTED)


def _how_to_go_on(stopped: InterruptedRunError, config: TrainingConfig) -> str:
    if stopped.folder is None:
        return f"{stopped}; with --keep_checkpoints 0 there is no checkpoint to go on from"
    arguments = sys.argv if config.resume else [*sys.argv, "--resume"]
    if "WORLD_SIZE" in os.environ:  # the launcher's own command is not known here
        return f"{stopped}, with a checkpoint in {stopped.folder}; go on with the same launcher and: " + shlex.join(
            arguments
        )
    return f"{stopped}, with a checkpoint in {stopped.folder}; go on with: {shlex.join(['python', *arguments])}"


def _plain_type(hint: Any) -> type:
    """`X` of `X | None`, else the type itself."""
    if isinstance(hint, types.UnionType):
        return next(member for member in typing.get_args(hint) if member is not types.NoneType)
    return hint


def _add_option(parser: argparse.ArgumentParser, declared: Field[Any], kind: type) -> None:
    spellings = [f"--{declared.name}", *declared.metadata["aliases"]]
    help_text = declared.metadata["help"].replace("%", "%%")
    if kind is bool:
        parser.add_argument(*spellings, action="store_true", help=help_text)
        return
    parser.add_argument(
        *spellings,
        dest=declared.name,
        type=_bounded(kind, declared.metadata["minimum"], declared.metadata["maximum"]),
        choices=declared.metadata["choices"],
        required=declared.default is MISSING,
        default=None if declared.default is MISSING else declared.default,
        help=help_text,
    )


def _bounded(kind: type, minimum: float | None, maximum: float | None) -> Callable[[str], Any]:
    """An argparse type that converts and checks the bounds."""

    def convert(text: str) -> Any:
        value = kind(text)
        if minimum is not None and not value >= minimum:  # also refuses nan
            raise argparse.ArgumentTypeError(f"expected at least {minimum}, got {text}")
        if maximum is not None and not value <= maximum:
            raise argparse.ArgumentTypeError(f"expected at most {maximum}, got {text}")
        return value

    convert.__name__ = kind.__name__  # argparse names it in "invalid int value"
    return convert
