"""Whole training runs of this project and of what people would use instead; `python -m benchmarks.peers`."""
