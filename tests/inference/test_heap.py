"""Memory does not grow with the number of calls."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT

# Texts of any length, a few or many: each call has shapes of its own.
_CALLS = """
import random, sys
from pathlib import Path
import bertorch

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

model, draw = bertorch.load(sys.argv[1]), random.Random(0)
for call in range(int(sys.argv[2]) + 1):
    model.encode(["我" * draw.randint(1, 120) for _ in range(draw.randint(1, 64))])
    if call == 10:
        before = resident()
print(resident() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_stays_bounded_over_calls_of_varied_shapes(folders):
    """Without a bound it is 600 MB after 300 calls."""
    command = [sys.executable, "-c", _CALLS, str(folders["simcse"]), "300"]
    result = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    assert float(result.stdout) < 200
