import os

import pytest

from bertorch import cli
from bertorch.threads import SPINS, spin_briefly


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")  # so that it is taken back
        monkeypatch.delenv(name)
    return monkeypatch


def test_threads_spin_briefly_unless_the_user_has_said_how_they_wait(environment):
    spin_briefly()
    assert os.environ["GOMP_SPINCOUNT"] == str(SPINS)
    environment.setenv("GOMP_SPINCOUNT", "7")
    spin_briefly()
    assert os.environ["GOMP_SPINCOUNT"] == "7"
    environment.delenv("GOMP_SPINCOUNT")
    environment.setenv("OMP_WAIT_POLICY", "PASSIVE")
    spin_briefly()
    assert "GOMP_SPINCOUNT" not in os.environ


def test_it_is_set_before_torch_is_loaded(environment):
    seen = {}
    environment.setattr(cli, "import_module", lambda name: seen.update({name: os.environ["GOMP_SPINCOUNT"]}))
    cli.load("a module with torch")
    assert seen == {"a module with torch": str(SPINS)}
