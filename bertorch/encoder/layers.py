"""Where each parameter of an encoder stands: below its layers, in one of them, or above.

The layers are not read from a list of architectures. They are the modules in lists as long as `num_hidden_layers`, and
a trial run shows that they run one after the other, and what runs before and after them.
"""

from collections.abc import Mapping, Sequence

from torch import nn
from transformers import PreTrainedModel

from bertorch.encoder.encoder import Encoder
from bertorch.encoder.trials import eval_mode, trial_batch
from bertorch.errors import UserError


class LayerDepths:
    """The depth of each parameter of an encoder of L layers: 0 below the layers, i in layer i from 1, L+1 above.

    What runs between two layers belongs to the one before it. A parameter that several depths share, or that is of a
    module that the trial does not call, such as a table of positions which all layers read, has the lowest.

    Args:
        encoder: of the model.
        option: what needs the depths, for the error.

    Raises:
        UserError: the encoder has no stack of layers that run once each, one after the other.
    """

    def __init__(self, encoder: Encoder, option: str) -> None:
        self._option = option
        self._model: PreTrainedModel = encoder.model
        self.layers: int = getattr(self._model.config.get_text_config(), "num_hidden_layers", None) or 0  # L
        layer_of = self._layer_of()
        calls = self._calls(encoder)
        numbers = [layer_of[module] for module in calls if module in layer_of]
        if self._has_repeated_member(calls):
            raise self._unsuited("its layers share their weights")
        if not numbers or numbers != sorted(numbers) or set(numbers) != set(range(1, self.layers + 1)):
            raise self._unsuited("such layers are not found")
        depth_of = self._others(calls, layer_of) | layer_of
        self.of: dict[nn.Parameter, int] = {}
        for module in self._model.modules():
            depth = depth_of.get(module, 0)
            for parameter in module.parameters(recurse=False):
                self.of[parameter] = min(depth, self.of.get(parameter, depth))

    def _layer_of(self) -> dict[nn.Module, int]:
        """The modules with weights of their own in the outermost lists of L modules, with the number of their layer.

        Some models, such as XLM, keep the parts of a layer in lists of their own.
        """
        found: dict[nn.Module, int] = {}
        inner: set[nn.Module] = set()
        for module in self._model.modules():  # outer ones before inner ones
            if not isinstance(module, nn.ModuleList) or len(module) != self.layers or module in inner:
                continue
            for number, layer in enumerate(module, start=1):
                inner.update(layer.modules())
                found |= {part: number for part in layer.modules() if any(True for _ in part.parameters(recurse=False))}
        return found

    def _calls(self, encoder: Encoder) -> list[nn.Module]:
        """The modules that a trial run calls, in this order."""
        calls: list[nn.Module] = []
        hooks = [
            module.register_forward_pre_hook(lambda module, _: calls.append(module)) for module in self._model.modules()
        ]
        try:
            with eval_mode(encoder):
                encoder(trial_batch(self._model.config))
        finally:
            for hook in hooks:
                hook.remove()
        return calls

    def _has_repeated_member(self, calls: Sequence[nn.Module]) -> bool:
        """Whether a module of a list, with weights, was called twice."""
        lists = [module for module in self._model.modules() if isinstance(module, nn.ModuleList)]
        members = {member for each in lists for member in each if any(True for _ in member.parameters())}
        return any(calls.count(member) > 1 for member in members)

    def _others(self, calls: Sequence[nn.Module], layer_of: Mapping[nn.Module, int]) -> dict[nn.Module, int]:
        """The depths of modules that are called outside of the layers, from their first call."""
        last_in_layers = max(index for index, module in enumerate(calls) if module in layer_of)
        depths: dict[nn.Module, int] = {}
        depth = 0
        for index, module in enumerate(calls):
            depth = self.layers + 1 if index > last_in_layers else layer_of.get(module, depth)
            depths.setdefault(module, depth)
        return depths

    def _unsuited(self, why: str) -> UserError:
        return UserError(
            f"{self._option}: expected an encoder with layers of their own weights, one on top of the other, got "
            f"{type(self._model).__name__}: {why}; leave the option out, or choose another "
            "--pretrained_model_name_or_path"
        )
