"""What a checkpoint holds: a list of named parts, each with tensors and JSON values.

A new stateful part (an average of the weights, say) derives from `Stateful` in its own file and is named in
`OptimizationStep.parts`; a hook overrides `state` and `restore` instead. Saving and restoring walk the list.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn
from typing_extensions import override

from bertorch import distributed


class State(NamedTuple):
    """The state of a part."""

    tensors: Mapping[str, Tensor]  # by name, on any device
    values: Any = None  # the rest, as JSON


class Stateful(Protocol):
    """A part of a run that a checkpoint saves and a resumed run restores."""

    def state(self) -> State:
        """The state now; the tensors may be those in use."""
        ...

    def restore(self, state: State) -> None:
        """Go back to a saved state, the same on every process; the tensors are on this process's device."""
        ...


@dataclass(frozen=True)
class ModuleState(Stateful):
    """The parameters and buffers of a module."""

    module: nn.Module

    @override
    def state(self) -> State:
        return State(self.module.state_dict())

    @override
    def restore(self, state: State) -> None:
        self.module.load_state_dict(dict(state.tensors))


@dataclass(frozen=True)
class ValuesState(Stateful):
    """An object whose `state_dict` has no tensors, such as the scaler of fp16."""

    target: Any

    @override
    def state(self) -> State:
        return State({}, self.target.state_dict())

    @override
    def restore(self, state: State) -> None:
        self.target.load_state_dict(dict(state.values))


def restore_parts(parts: Mapping[str, Stateful], saved: Mapping[str, State] | None) -> None:
    """Restore parts, in the same order on every process, from the checkpoint that the first process has read.

    `saved` is None on all other processes.
    """
    values = distributed.broadcast_json({name: state.values for name, state in saved.items()} if saved else None)
    for name, part in parts.items():
        if name not in values:  # a checkpoint from before there was such a part
            continue
        tensors = distributed.broadcast_tensors(saved[name].tensors if saved else None)
        part.restore(State(tensors, values[name]))
