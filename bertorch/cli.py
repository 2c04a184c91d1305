"""Command lines: dataclass fields become argparse options, user errors become exit code 2."""

import argparse
import gc
import math
import os
import shlex
import signal
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

from loguru import logger
from typing_extensions import override

from bertorch import clock, program
from bertorch.config import GROUPS, LaunchedConfig, TrainingConfig
from bertorch.errors import InterruptedRunError, UserError, exit_on_user_error

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

INTERRUPTED = 75  # EX_TEMPFAIL of sysexits.h: try again later

Config = TypeVar("Config", bound="DataclassInstance")
Launched = TypeVar("Launched", bound=LaunchedConfig)
Training = TypeVar("Training", bound=TrainingConfig)


def parse(config_class: type[Config], argv: Sequence[str] | None = None, description: str | None = None) -> Config:
    """Parse a command line, by default the process's, into a config, whose fields `config.option` declares.

    Raises:
        SystemExit: code 2 with the reason, as argparse does, also for options that contradict each other.
    """
    parser = _Parser(description=description)
    parser.add_options(config_class)
    return _config(parser, config_class, vars(parser.parse_args(argv)))


def parse_command(
    commands: Mapping[str, type[Config]], argv: Sequence[str] | None = None, description: str | None = None
) -> Config:
    """As `parse`, where the first argument names a command with its own config, whose docstring is the help."""
    parser = _Parser(description=description)
    subparsers = parser.add_subparsers(required=True, dest="command", metavar="COMMAND")
    for name, config_class in commands.items():
        summary = config_class.__doc__
        subparsers.add_parser(name, help=summary, description=summary).add_options(config_class)
    values = vars(parser.parse_args(argv))
    name = values.pop("command")
    return _config(subparsers.choices[name], commands[name], values)


def _config(parser: argparse.ArgumentParser, config_class: type[Config], values: dict[str, Any]) -> Config:
    try:
        return config_class(**{name: tuple(each) if isinstance(each, list) else each for name, each in values.items()})
    except UserError as error:
        parser.error(str(error))


def command(config_class: type[Launched], run: Callable[[Launched], None], description: str | None) -> None:
    """Run a command: parse, join the other processes, report user errors without a traceback.

    Raises:
        SystemExit: code 2 for a user error, 1 if the reader of the output has gone, 128 + its number for a signal.
    """
    config = parse(config_class, description=description)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # unwinds: unfinished files are removed
    load("bertorch.inference.load")
    try:
        _run(config, run)
    except BrokenPipeError:
        sys.exit(1)


def main(config_class: type[Training], run: Callable[[Training], None], description: str | None) -> None:
    """Run a training script: as `command`, with the run's seed and resumption.

    Raises:
        SystemExit: code 2 for a user error, 75 for a run stopped by a signal, with the command that resumes it, 130
            for Ctrl-C before the first step.
    """
    config = parse(config_class, description=description)
    load("bertorch.training.loop")
    import torch

    from bertorch import distributed
    from bertorch.training.start import started

    def train(config: Training) -> None:
        with started(config):
            run(config)

    if config.deterministic:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # required by cuBLAS, before its first use
        torch.use_deterministic_algorithms(mode=True)
        # Else every new tensor is filled, which finds bugs and costs time.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.manual_seed(config.seed)  # new weights are the same on every process
    try:
        _run(config, train)
    except InterruptedRunError as stopped:
        if distributed.launched_rank() == 0:
            logger.warning("{}", _how_to_resume(stopped, config))
        sys.exit(INTERRUPTED)


def _run(config: Launched, run: Callable[[Launched], None]) -> None:
    import torch

    from bertorch import distributed, log

    clock.note_command()
    with exit_on_user_error(distributed.launched_rank()), distributed.session(config.local_rank):
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        log.setup()
        run(config)


def load(module: str) -> None:
    """Import what takes seconds: a module with torch and transformers under it.

    The million objects that this makes stay. The garbage collector does not go through them meanwhile, which takes a
    seventh of the time, nor later.
    """
    gc.disable()
    try:
        import_module(module)
    finally:
        gc.freeze()
        gc.enable()


def _how_to_resume(stopped: InterruptedRunError, config: TrainingConfig) -> str:
    if not stopped.goes_on:
        return f"{stopped}; --keep_checkpoints 0 left no checkpoint to continue from"
    again = program.arguments_again()
    arguments = shlex.join(again if config.resume else [*again, "--resume"])
    words, launcher = program.command(), ""
    if "WORLD_SIZE" in os.environ:  # the launcher's own command is not known here
        launcher, words = " the same launcher and", words[1:]
    return f"{stopped}; go on with{launcher}: {shlex.join(words)} {arguments}"


class _Parser(argparse.ArgumentParser):
    """Shows the description as it is written; the defaults are left to the config."""

    def __init__(self, **settings: Any) -> None:
        name = program.module()
        prog = None if name is None else f"python -m {name}"
        settings = {"prog": prog, "formatter_class": argparse.RawDescriptionHelpFormatter} | settings
        super().__init__(argument_default=argparse.SUPPRESS, allow_abbrev=False, **settings)

    @override
    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        """As argparse, but `--option=--` has a value, which Python loses before 3.13."""
        if action.option_strings and action.nargs is None and arg_strings == ["--"]:
            value = self._get_value(action, arg_strings[0])
            self._check_value(action, value)
            return value
        return super()._get_values(action, arg_strings)

    def add_options(self, config_class: "type[DataclassInstance]") -> None:
        """Add the options of a config in their groups; the first is argparse's own, with --help."""
        types_of = typing.get_type_hints(config_class)
        required = [declared for declared in fields(config_class) if declared.default is MISSING]
        self.usage = " ".join(["%(prog)s", *map(_usage, required), "[options]"])
        for group, options in grouped_options(config_class).items():
            target = self if group == GROUPS[0] else self.add_argument_group(group)
            for declared in options:
                _add_option(target, declared, types_of[declared.name])


def grouped_options(config_class: type[Config]) -> dict[str, list[Field[Any]]]:
    """The options of a config by group, as `--help` shows them: the required ones first, the launcher's last."""

    def order(declared: Field[Any]) -> tuple[bool, bool]:
        return declared.default is not MISSING, declared.name in LaunchedConfig.__dataclass_fields__

    options = sorted(fields(config_class), key=order)
    groups = {group: [each for each in options if each.metadata["group"] == group] for group in GROUPS}
    return {group: members for group, members in groups.items() if members}


def spellings(declared: Field[Any]) -> list[str]:
    """What the user writes; the underscore of a name that is a keyword of Python (`from_`) is left out."""
    if declared.metadata["positional"]:
        return [declared.metadata["metavar"] or declared.name]
    return [f"--{declared.name.rstrip('_')}", *declared.metadata["aliases"]]


def default_text(declared: Field[Any]) -> str:
    """The default as `--help` and the docs show it."""
    texts: dict[Any, str] = {MISSING: "required", None: "none", (): "none"}
    if isinstance(declared.default, bool):
        return "on" if declared.default else "off"
    return texts.get(declared.default, str(declared.default))


def _usage(declared: Field[Any]) -> str:
    return spellings(declared)[0] + ("" if declared.metadata["positional"] else f" {declared.name.upper()}")


def _add_option(target: argparse._ActionsContainer, declared: Field[Any], hint: Any) -> None:
    metadata = declared.metadata
    is_required = declared.default is MISSING
    shown = "required" if is_required else f"default: {default_text(declared)}"
    settings: dict[str, Any] = {"help": f"{metadata['help']} ({shown})".replace("%", "%%")}
    names = [declared.name] if metadata["positional"] else spellings(declared)
    if not metadata["positional"]:
        settings |= {"dest": declared.name, "required": is_required}
    if hint is bool:
        target.add_argument(*names, **settings, action="store_true")
        return
    if typing.get_origin(hint) is tuple:
        settings |= {"nargs": "+", "action": "extend"}
    kind, *_ = typing.get_args(hint) or [hint]  # X of `X | None` and of `tuple[X, ...]`
    settings |= {key: metadata[key] for key in ("choices", "metavar")}
    target.add_argument(*names, **settings, type=_bounded(kind, metadata["minimum"], metadata["maximum"]))


def _bounded(kind: type, minimum: float | None, maximum: float | None) -> Callable[[str], Any]:
    """An argparse type that converts, and checks the bounds of a number, which must be finite or fit into 64 bits.

    No option takes an empty text.
    """
    if maximum is None and kind is int:
        maximum = 2**63 - 1

    def convert(text: str) -> Any:
        if not text:  # as the name of a folder it would be the current one
            raise argparse.ArgumentTypeError("expected a value, got an empty text")
        value = kind(text)
        if isinstance(value, float) and not math.isfinite(value):
            raise argparse.ArgumentTypeError(f"expected a finite number, got {text}")
        if minimum is not None and value < minimum:
            raise argparse.ArgumentTypeError(f"expected at least {minimum}, got {text}")
        if maximum is not None and value > maximum:
            raise argparse.ArgumentTypeError(f"expected at most {maximum}, got {text}")
        return value

    convert.__name__ = kind.__name__  # argparse names it in "invalid int value"
    return convert
