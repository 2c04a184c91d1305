"""What every model that is trained here has in common."""

from torch import nn


class EncoderModel(nn.Module):
    """A model on packed batches with an encoder inside."""

    @property
    def weights(self) -> nn.Module:
        """The module whose `state_dict` is saved and warm-started."""
        raise NotImplementedError

    @property
    def encoder_prefix(self) -> str:
        """The encoder's name within `weights`, such as `bert`."""
        raise NotImplementedError
