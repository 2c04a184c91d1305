"""Shim."""

from bertorch.encoder.onednn import use_onednn  # noqa: F401
