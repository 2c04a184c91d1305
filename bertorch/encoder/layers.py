"""Where each parameter of an encoder stands: below its layers, in one of them, or above.

The layers are not read from a list of architectures. They are the modules in lists as long as `num_hidden_layers`, and
a trial run shows that they run one after the other, and what runs before and after them.
"""

from collections.abc import Mapping, Sequence

from loguru import logger
from torch import nn
from transformers import PreTrainedModel

from bertorch.encoder.encoder import Encoder
from bertorch.encoder.trials import eval_mode, matches, trial_batch
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

    def lists(self) -> list[nn.ModuleList]:
        """The outermost lists of L modules; some models, such as XLM, keep the parts of a layer in several."""
        found: list[nn.ModuleList] = []
        inner: set[nn.Module] = set()
        for module in self._model.modules():  # outer ones before inner ones
            if isinstance(module, nn.ModuleList) and len(module) == self.layers and module not in inner:
                inner.update(part for layer in module for part in layer.modules())
                found.append(module)
        return found

    def _layer_of(self) -> dict[nn.Module, int]:
        """The modules with weights of their own in the layers, with the number of their layer."""
        return {
            part: number
            for modules in self.lists()
            for number, layer in enumerate(modules, start=1)
            for part in layer.modules()
            if any(True for _ in part.parameters(recurse=False))
        }

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
        return unsuited(self._model, self._option, why)


def unsuited(model: nn.Module, option: str, why: str) -> UserError:
    """The error that refuses an option that needs layers for an encoder."""
    return UserError(
        f"{option}: expected an encoder with layers of their own weights, one on top of the other, got "
        f"{type(model).__name__}: {why}; leave the option out, or choose another --pretrained_model_name_or_path"
    )


def keep_layers(encoder: Encoder, kept: Sequence[int]) -> None:
    """Leave an encoder these of its layers, numbers from 0 that rise, and its config what describes them.

    Fields of the config with an entry a layer, such as `layer_types`, are cut alike. That the config then describes
    the encoder is not read from a list of architectures: a trial compares it with one that is built from the config,
    as it will be saved, and has the same weights.

    Raises:
        UserError: it has no such layers, or its config cannot say which they are.
    """
    option = f"--layers_from {','.join(map(str, kept))}"
    model, depths = encoder.model, LayerDepths(encoder, option)
    if max(kept) >= depths.layers:
        raise UserError(
            f"{option}: expected numbers from 0 to {depths.layers - 1}, the layers of {type(model).__name__}, got "
            f"{max(kept)}"
        )
    for modules in depths.lists():
        for number in sorted(set(range(depths.layers)) - set(kept), reverse=True):
            del modules[number]
    config = model.config.get_text_config()
    for name, value in config.to_dict().items():
        if isinstance(value, list) and len(value) == depths.layers:
            setattr(config, name, [value[number] for number in kept])
    config.num_hidden_layers = len(kept)
    if not _is_described(encoder):
        raise unsuited(model, option, "without the others they do not give what its config then describes")


def _is_described(encoder: Encoder) -> bool:
    """Whether an encoder that is built from the config gives the same with the same weights."""
    model = encoder.model
    batch = trial_batch(model.config) if encoder.packed else encoder.long_trial()
    with eval_mode(encoder):
        try:
            rebuilt = type(model)(type(model.config).from_dict(model.config.to_dict())).to(model.dtype)
            if rebuilt.load_state_dict(model.state_dict(), strict=False).unexpected_keys:
                return False
            expected = Encoder(rebuilt.eval())(batch)  # (T, H)
        except Exception as error:  # noqa: BLE001 - a config that does not suit may fail anywhere
            logger.debug("trial run: {}: {}", type(error).__name__, error)
            return False
        return matches(expected, lambda: encoder(batch))
