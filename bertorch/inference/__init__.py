"""Trained models in use: loading a saved folder, and predicting, encoding and tagging with it."""
