import os
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from bertorch.data import scratch
from bertorch.data.scratch import GrowingArray, GrowingLists, joined_lists, scratch_in, zeros
from bertorch.errors import UserError


@pytest.fixture(params=[0, 100, 2**20])
def in_memory(request, monkeypatch):
    monkeypatch.setattr(scratch, "IN_MEMORY", request.param)


@pytest.mark.usefixtures("in_memory")
@pytest.mark.parametrize(("dtype", "row"), [(np.int32, ()), (np.uint8, ()), (np.uint64, (2,))])
def test_an_array_grows_by_what_is_appended(dtype, row):
    generator = np.random.default_rng(0)
    parts = [generator.integers(0, 200, (rows, *row)).astype(dtype) for rows in (3, 0, 50, 1, 0)]
    array = GrowingArray(dtype, row)
    for part in parts:
        array.append(part)
    finished = array.finish()
    assert finished.dtype == dtype
    assert np.array_equal(finished, np.concatenate(parts))
    assert GrowingArray(dtype, row).finish().shape == (0, *row)


@pytest.mark.usefixtures("in_memory")
@pytest.mark.parametrize("shape", [(0,), (70_000,), (100, 3), (0, 3)])
def test_zeros_can_be_written_at_any_place(shape):
    array = zeros(shape, np.int64)
    assert array.shape == shape
    assert not array.any()
    array[-5:] = 7
    array[:3] = 5
    assert array.sum() == (len(array[-5:]) * 7 + len(array[:3]) * 5) * (3 if len(shape) == 2 else 1)


@pytest.mark.usefixtures("in_memory")
@pytest.mark.parametrize("size", [0, 1, 127, 128, 300])
def test_lists_grow_by_what_is_appended(size):
    lengths = np.random.default_rng(0).integers(0, 4, size)
    lists, growing = [list(range(length)) for length in lengths], GrowingLists()
    for index, each in enumerate(lists):
        growing.append(np.array(each, dtype=np.int64) if index % 2 else each)
    finished = growing.finish()
    assert [each.tolist() for each in finished] == lists
    assert [finished[index].tolist() for index in range(-size, 0)] == lists
    assert len(finished) == size


@pytest.mark.usefixtures("in_memory")
@pytest.mark.parametrize("size", [0, 1, 128, 300])
def test_lists_of_rows(size, monkeypatch):
    monkeypatch.setattr(scratch, "_JOINED", 7)
    lengths = np.random.default_rng(0).integers(0, 4, size)
    lists, growing = [np.arange(length * 3).reshape(-1, 3) for length in lengths], GrowingLists((3,))
    for each in lists:
        growing.append(each)
    finished = growing.finish()
    assert [each.tolist() for each in finished] == [each.tolist() for each in lists]
    assert all(each.shape == (length, 3) for each, length in zip(finished, lengths, strict=True))
    for source in (lists, finished):
        content, offsets = joined_lists(source, (3,))
        assert content.tolist() == [row for each in lists for row in each.tolist()]
        assert content.shape[1:] == (3,)
        assert offsets.tolist() == [0, *np.cumsum(lengths).tolist()]


def test_a_long_array_is_in_a_file_without_a_name(tmp_path, monkeypatch):
    monkeypatch.setattr(scratch, "IN_MEMORY", 0)
    with scratch_in(tmp_path):
        array = GrowingArray(np.int32)
        array.append([1, 2])
    assert os.readlink(f"/proc/self/fd/{array._file.fileno()}").startswith(str(tmp_path))
    assert list(tmp_path.iterdir()) == []  # nothing to remove, also after SIGKILL
    assert array.finish().tolist() == [1, 2]


@pytest.mark.parametrize(("folder", "named"), [(None, "the folder for temporary files"), ("x", "--cache_dir x")])
def test_a_full_disk_is_an_error_that_says_where(folder, named, monkeypatch):
    monkeypatch.setattr(scratch, "IN_MEMORY", 0)
    monkeypatch.setattr(scratch.tempfile, "TemporaryFile", lambda **_: Path("/dev/full").open("w+b", buffering=0))  # noqa: SIM115
    inside = nullcontext() if folder is None else scratch_in(Path(folder))
    message = f"^{named}: expected room for .*, got: No space left on device; name a folder"
    with inside, pytest.raises(UserError, match=message):
        GrowingArray(np.int64).append([1])


def test_a_folder_that_is_not_there_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(scratch, "IN_MEMORY", 0)
    with scratch_in(tmp_path / "nowhere"), pytest.raises(UserError, match="nowhere: expected .*, got: No such file"):
        zeros((3,), np.int8)
