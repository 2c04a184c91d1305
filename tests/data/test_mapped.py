import mmap

import numpy as np
import pytest

from bertorch.data import mapped
from bertorch.data.mapped import announce_reading

pytestmark = pytest.mark.usefixtures("all_are_large")
STARTS, ENDS = np.array([0, 4000, 1020, 99_990]), np.array([5, 4300, 1030, 100_000])


@pytest.fixture
def all_are_large(monkeypatch):
    monkeypatch.setattr(mapped, "SMALL", 0)


class Recorded(mmap.mmap):
    """Remembers for which bytes the system is asked."""

    def madvise(self, option, start, length):
        super().madvise(option, start, length)
        assert option == mmap.MADV_WILLNEED
        self.asked.append(range(start, start + length))


@pytest.mark.parametrize("header", [0, 32])
def test_the_pages_of_all_ranges_are_asked_for_and_no_others(header, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(header + 4 * 100_000))
    with path.open("rb") as file:
        recorded = Recorded(file.fileno(), 0, prot=mmap.PROT_READ)
    recorded.asked = []
    array = np.frombuffer(recorded, np.int32, offset=header)
    announce_reading(array, np.repeat(STARTS, 2), np.repeat(ENDS, 2))  # what comes twice is asked for once
    order = STARTS.argsort()
    for asked, start, end in zip(recorded.asked, STARTS[order], ENDS[order], strict=True):
        first = header + 4 * start
        assert asked.start == first - first % mmap.PAGESIZE
        assert asked.stop == header + 4 * end


def test_an_array_that_numpy_maps(tmp_path):
    """As a cached data set is opened; whether the system reads ahead cannot be seen here, only that it takes it."""
    np.save(tmp_path / "array.npy", np.arange(100_000, dtype=np.int32))
    announce_reading(np.load(tmp_path / "array.npy", mmap_mode="r").view(np.ndarray), STARTS, ENDS)


def test_a_small_array_is_left_to_the_system(tmp_path, monkeypatch):
    monkeypatch.setattr(mapped, "SMALL", 2**20)
    monkeypatch.setattr(mapped, "_mapping", None)
    announce_reading(np.arange(100_000), STARTS, ENDS)


def test_an_array_in_memory_is_left_alone():
    announce_reading(np.arange(100_000)[10:], STARTS, ENDS)
