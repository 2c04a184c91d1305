"""Whole commands, ours and those of the peers' own scripts, from start to exit; `python -m benchmarks.end_to_end`."""

import os

ENVIRONMENT = dict(os.environ)  # of the commands; importing a program may change this process's own
