"""Shim."""

from bertorch.encoder import encoder

empty_model, label_settings, load_config, load_pretrained, load_tokenizer, saved_label_names = (
    encoder.empty_model,
    encoder.label_settings,
    encoder.load_config,
    encoder.load_pretrained,
    encoder.load_tokenizer,
    encoder.saved_labels,
)
