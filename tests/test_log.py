import time

from bertorch import log


def test_training_line_with_accuracy():
    line = log.training_line(global_step=20, epoch=1, batch=20, loss=0.232271, accuracy=0.875, speed=2.118)
    assert line == "global step: 20, epoch: 1, batch: 20, loss: 0.23227, accuracy: 0.87500, speed: 2.12 step/s"


def test_training_line_without_accuracy():
    line = log.training_line(global_step=20, epoch=1, batch=20, loss=1.042409, accuracy=None, speed=8.449)
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
    assert log.progress_bar(10).disable
