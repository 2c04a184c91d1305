"""Metrics, optimisation, checkpoints and the one train loop."""
