"""How long OpenMP's threads spin at their barriers; see docs/speed.en.md."""

import os

# Rounds of a loop for which a thread of GNU OpenMP, which PyTorch's CPU wheels have, waits before it sleeps. By default
# they are 300,000, and another program on its core has to wait that long.
SPINS = 10_000


def spin_briefly() -> None:
    """Let other programs have the cores sooner, unless the user has set how threads wait; before torch is loaded."""
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = str(SPINS)
