import subprocess
import sys
import time
from contextlib import suppress

import pytest

from bertorch import clock
from bertorch.clock import Clock


def test_the_parts_add_up(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(clock, "_commands", [])
    monkeypatch.setattr(clock.time, "monotonic", lambda: now[0])
    watch = Clock()
    now[0] = 4.0
    watch.start()
    now[0] = 10.0
    for seconds in (2.0, 1.0):
        with watch.measuring("evaluating"):
            now[0] += seconds
    with suppress(KeyError), watch.measuring("last save"):
        now[0] += 3.0
        raise KeyError
    now[0] += 0.5
    assert watch.seconds() == {"total": 16.5, "start": 4.0, "training": 6.5, "evaluating": 3.0, "last save": 3.0}


def test_a_command_begins_with_its_process():
    code = (
        "import time; time.sleep(0.7); from bertorch import clock; clock.note_command(); "
        "watch = clock.Clock(); watch.start(); print(watch.seconds()['start'])"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0.69 <= float(done.stdout) <= time.monotonic() - began + 0.02


@pytest.mark.slow
def test_what_a_process_did_before_it_became_python_is_not_its_time():
    """As the last line of a job's script, which has waited for its data."""
    code = "from bertorch import clock; clock.note_command(); watch = clock.Clock(); watch.start(); "
    code += "print(watch.seconds()['start'])"
    command = ["sh", "-c", f'sleep 4; exec "{sys.executable}" -c "{code}"']
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 4
