"""What every model that is trained here has in common."""

from collections.abc import Sequence

from torch import Tensor, nn
from transformers import PretrainedConfig

from bertorch.encoder.encoder import Encoder
from bertorch.encoder.layers import LayerDepths, keep_layers
from bertorch.encoder.padded import PaddedModel
from bertorch.encoder.trials import trial_batch
from bertorch.errors import UserError


class EncoderModel(nn.Module):
    """A model on packed batches with an encoder inside."""

    @property
    def config(self) -> PretrainedConfig:
        """Saved with the weights; it also holds the metadata of `bertorch.tasks`."""
        raise NotImplementedError

    @property
    def weights(self) -> nn.Module:
        """The module whose `state_dict` is saved and warm-started."""
        raise NotImplementedError

    @property
    def encoder_prefix(self) -> str:
        """The encoder's name within `weights`, such as `bert`; empty where a graph stands for it."""
        return next((encoder.model.base_model_prefix for encoder in self.encoders), "")

    @property
    def encoders(self) -> list[Encoder]:
        """The encoders inside, at least one, unless a graph stands for it."""
        return [module for module in self.modules() if isinstance(module, Encoder)]

    def padded(self) -> PaddedModel:
        """The model on padded inputs, with the same weights, for exports: what packed batches cost most time in.

        Raises:
            NotImplementedError: it has no such form.
        """
        raise NotImplementedError

    def beside_graph(self) -> dict[str, Tensor]:
        """The weights that an export has beside the graph of `padded`, by their names within `weights`."""
        return {}

    def is_head(self, name: str) -> bool:
        """Whether a weight, by its name within `weights`, starts anew with `--new_head`."""
        return not name.startswith(f"{self.encoder_prefix}.")

    def compile_encoders(self) -> None:
        """Compile the encoders with `torch.compile`, for batches of any size; the weights keep their names."""
        for encoder in self.encoders:
            encoder.model.compile(dynamic=True)
            encoder.compiled = True

    def keep_layers(self, kept: Sequence[int]) -> None:
        """Leave the encoders these of their layers; see `bertorch.encoder.layers.keep_layers`."""
        for encoder in self.encoders:
            keep_layers(encoder, kept)

    def freeze_layers(self, count: int) -> None:
        """Keep the embeddings and the first `count` layers of the encoders as they are, but for their dropout.

        Raises:
            UserError: there are fewer layers, they are not found, or nothing is left to train.
        """
        option = f"--freeze_layers {count}"
        for encoder in self.encoders:
            depths, name = LayerDepths(encoder, option), type(encoder.model).__name__
            if count > depths.layers:
                raise UserError(f"{option}: expected at most the {depths.layers} layers of {name}, got {count}")
            for parameter, depth in depths.of.items():
                if depth <= count:
                    parameter.requires_grad_(False)
        inside = {parameter for encoder in self.encoders for parameter in encoder.parameters()}
        has_head = any(parameter.requires_grad for parameter in self.parameters() if parameter not in inside)
        if not has_head and not self(trial_batch(self.config)).requires_grad:
            raise UserError(f"{option}: expected something left to train, got a model without layers on top of these")

    def rate_factors(self, decay: float) -> dict[nn.Parameter, float]:
        """Factors on the learning rate: `decay`^(L+1-i) in layer i of L; what is not in the encoders has none.

        It is `decay`^(L+1) in the embeddings and 1 above the layers, see `LayerDepths`.

        Raises:
            UserError: the layers are not found.
        """
        factors: dict[nn.Parameter, float] = {}
        for encoder in self.encoders:
            depths = LayerDepths(encoder, f"--layer_decay {decay:g}")
            factors |= {parameter: decay ** (depths.layers + 1 - depth) for parameter, depth in depths.of.items()}
        return factors

    def recompute_activations(self) -> None:
        """Keep only the input of each layer in training; the backward pass runs the layer again, with the same dropout.

        Chen, Xu, Zhang and Guestrin, Training Deep Nets with Sublinear Memory Cost, 2016.

        Raises:
            UserError: transformers cannot do so with this architecture.
        """
        for model in (encoder.model for encoder in self.encoders):
            # Its name depends on the version of transformers.
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            try:
                enable({"use_reentrant": False})
            except ValueError as error:
                raise UserError(
                    f"--gradient_checkpointing: expected a model whose layers transformers can run again, got "
                    f"{type(model).__name__}; leave the option out, or choose another --pretrained_model_name_or_path"
                ) from error
