"""The numbers of a run for TensorBoard, an extra: `pip install tensorboard`."""

from collections.abc import Mapping
from typing import Any

from bertorch.errors import UserError


class TensorBoardFolder:
    """Writes what `metrics.jsonl` gets. Only the first process uses it.

    Args:
        folder: `--tensorboard_dir`.
        after: the step that the run goes on after; TensorBoard hides later ones that are in the folder already.

    Raises:
        UserError: the package is missing, or the folder cannot be written to.
    """

    def __init__(self, folder: str, *, after: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - an extra
        except ImportError as error:
            raise UserError(
                f"--tensorboard_dir {folder}: expected the package tensorboard, got: {error}; install it with "
                "`pip install tensorboard`, or leave the option out: metrics.jsonl has the same numbers"
            ) from error
        try:
            self._writer = SummaryWriter(folder, purge_step=after + 1)
        except OSError as error:
            raise UserError(
                f"--tensorboard_dir {folder}: expected a folder that can be written to, got: {error.strerror or error}"
            ) from error

    def write(self, line: Mapping[str, Any]) -> None:
        """Write the numbers of a line of `metrics.jsonl`; they can be seen at once."""
        for name, value in line.items():
            if name != "step" and isinstance(value, int | float):
                self._writer.add_scalar(name.replace("dev_", "dev/"), value, line["step"])
        self._writer.flush()
