import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time

import pytest

from bertorch import log
from tests.conftest import ROOT


def test_training_line_with_accuracy():
    line = log.training_line(20, 1, 20, {"loss": 0.232271, "accuracy": 0.875}, 2.118)
    assert line == "global step: 20, epoch: 1, batch: 20, loss: 0.23227, accuracy: 0.87500, speed: 2.12 step/s"


def test_training_line_without_accuracy():
    line = log.training_line(20, 1, 20, {"loss": 1.042409}, 8.449)
    assert line == "global step: 20, epoch: 1, batch: 20, loss: 1.04241, speed: 8.45 step/s"


def test_speed_leaves_pauses_out(monkeypatch):
    now = 100.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    speedometer = log.Speedometer()
    for _ in range(10):
        speedometer.step()
    now += 2.0
    with speedometer.paused():
        now += 1000.0
    now += 3.0
    assert speedometer.read() == 2.0
    speedometer.step()
    now += 4.0
    assert speedometer.read() == 0.25


def test_no_progress_bar_into_a_file():
    assert log.progress_bar(10, done=0).disable


@pytest.mark.slow
def test_a_progress_bar_on_a_terminal():
    """On a pseudo-terminal of 100 columns: the bar is drawn, and a log line stands on a line of its own."""
    program = (
        "import time; from bertorch import log; from loguru import logger; log.setup()\n"
        "with log.progress_bar(3, done=0) as bar:\n"
        "    bar.update(); logger.info('a message'); bar.update(2)\n"
        "with log.tokenizing_bar(7) as bar: pass\n"
        "with log.tokenizing_bar(9) as bar:\n"
        "    time.sleep(1.1); bar.update(4)\n"
    )
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stderr=theirs) as process:
        assert process.wait(timeout=60) == 0
    os.close(theirs)
    text = os.read(ours, 100_000).decode()
    os.close(ours)
    assert "3/3" in text
    assert "4/9" in text  # what takes less than a second has no bar
    assert "/7" not in text
    assert [line for line in re.split(r"[\r\n]+", text) if "a message" in line and "step" not in line]
