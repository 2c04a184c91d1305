"""What a checkpoint holds: a list of named parts, each with tensors and values as JSON has them.

A new stateful part (an average of the weights, say) implements `Stateful` in its own file and is named in
`bertorch.training.loop.fit`; saving and restoring walk the list.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from bertorch import distributed


class State(NamedTuple):
    """The state of a part: tensors by name, on any device, and the rest as JSON has it."""

    tensors: Mapping[str, Tensor]
    values: Any = None


class Stateful(Protocol):
    """A part of a run that a checkpoint saves and a resumed run restores."""

    def state(self) -> State:
        """The state now; the tensors may be those in use."""
        ...

    def restore(self, state: State) -> None:
        """Go back to a saved state, the same on every process; the tensors are on this process's device."""
        ...


class ModuleState:
    """The parameters and buffers of a module."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def state(self) -> State:
        """The module's `state_dict`."""
        return State(self._module.state_dict())

    def restore(self, state: State) -> None:
        """Load it."""
        self._module.load_state_dict(dict(state.tensors))


class ValuesState:
    """An object whose `state_dict` has no tensors, such as a scheduler or the scaler of fp16."""

    def __init__(self, target: Any) -> None:
        self._target = target

    def state(self) -> State:
        """The object's `state_dict`."""
        return State({}, self._target.state_dict())

    def restore(self, state: State) -> None:
        """Load it."""
        self._target.load_state_dict(dict(state.values))


def restore_parts(parts: Mapping[str, Stateful], saved: Mapping[str, State] | None) -> None:
    """Bring all parts to the state that the first process has read; every process must call it.

    Args:
        parts: by name, in the same order on every process.
        saved: of the checkpoint, by the same names; None on all processes but the first.
    """
    values = distributed.broadcast_json({name: state.values for name, state in saved.items()} if saved else None)
    for name, part in parts.items():
        tensors = distributed.broadcast_tensors(saved[name].tensors if saved else None)
        part.restore(State(tensors, values[name]))
