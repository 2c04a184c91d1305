"""Shim."""

from bertorch.encoder.encoder import (  # noqa: F401
    empty_model,
    label_settings,
    load_config,
    load_pretrained,
    load_tokenizer,
)
from bertorch.encoder.encoder import saved_labels as saved_label_names  # noqa: F401
