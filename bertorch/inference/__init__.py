"""Inference with trained models: loading a saved folder, predicting, encoding, tagging."""
