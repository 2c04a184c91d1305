"""The padding-free encoder and the heads on it."""
