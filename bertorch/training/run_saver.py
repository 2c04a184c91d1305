"""What a run saves after a step: copied at its end, written in the background."""

from collections.abc import Mapping, Sequence
from copy import deepcopy

from torch import Tensor

from bertorch import distributed
from bertorch.tasks.base import Savable
from bertorch.training.background import BackgroundSaver, Write
from bertorch.training.run_folder import RunFolder
from bertorch.training.snapshot import HostMemory
from bertorch.training.state import State, Stateful


class RunSaver:
    """Saves weights for use and checkpoints into the folder, at most one regular save in `interval` seconds.

    After a step: `begin`, then what is to be saved, then `write`. All processes call it, the first one saves. An error
    of writing is raised by the next `begin`, or by the `write` that waits, on every process.
    """

    def __init__(self, folder: RunFolder | None, interval: float) -> None:
        self._folder = folder  # None on other processes than the first
        self._background = BackgroundSaver(interval)
        self._memory: HostMemory | None = None  # with the copies of this step
        self._writes: list[Write] = []

    def begin(self, *, regular: bool, must: bool) -> bool:
        """Whether there is a regular save after this step: if it is due, and there must be one, or its time has come.

        Raises:
            UserError: an earlier save could not be written; on every process.
        """
        saves: bool = distributed.on_main(lambda: (regular or must) and self._background.takes(must=must))
        self._kind = "all" if saves else "weights"
        return saves

    def save_weights(self, weights: Mapping[str, Tensor], savables: Sequence[Savable], *, averaged: bool) -> None:
        """Save weights for use, `averaged` if the parameters have other values for the time of the save."""
        if self._folder is not None:
            copies = self._copied(weights, "averaged" if averaged else "")
            folder = self._folder
            self._writes.append(lambda: folder.save_weights(copies, savables))

    def save_checkpoint(self, step: int, parts: Mapping[str, Stateful], savables: Sequence[Savable]) -> None:
        """Save a checkpoint of these parts."""
        if self._folder is not None and self._folder.keeps_checkpoints:
            states = {name: part.state() for name, part in parts.items()}
            copies = {name: State(self._copied(of.tensors), deepcopy(of.values)) for name, of in states.items()}
            folder = self._folder
            self._writes.append(lambda: folder.save_checkpoint(step, copies, savables))

    def write(self, *, wait: bool) -> None:
        """Have written what was copied since `begin`; with `wait`, wait for it.

        Raises:
            UserError: it could not be written; on every process.
        """
        distributed.on_main(lambda: self._write(wait=wait))

    def close(self) -> None:
        """Wait for what is being written; for a run that ends, in whatever way."""
        self._background.close()

    def _copied(self, tensors: Mapping[str, Tensor], variant: str = "") -> dict[str, Tensor]:
        if self._memory is None:
            self._memory = self._background.memory(self._kind)
        return self._memory.copies(tensors, variant=variant)

    def _write(self, *, wait: bool) -> None:
        if self._memory is not None:
            # Newer weights take the place of older ones that wait to be written.
            self._background.write(self._kind, self._memory, self._writes, replaces=self._kind == "weights")
        self._memory, self._writes = None, []
        if wait:
            self._background.wait()
