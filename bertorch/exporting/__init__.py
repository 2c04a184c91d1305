"""Exports of saved folders for other programs, each compared with the model before it takes its place."""
