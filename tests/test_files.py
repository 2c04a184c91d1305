import io
import os
import pickle
import zipfile

import pytest
import torch

from bertorch.errors import UserError
from bertorch.files import check_sums, reason, require_file


@pytest.mark.parametrize("kind", ["folder", "pipe", "socket", "device"])
def test_only_a_regular_file_is_one(kind, special, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    require_file(tmp_path / "file", "weights")
    require_file(str(tmp_path / "link"), "weights")
    with pytest.raises(UserError, match=f"{special[kind]}: expected weights, got a {kind}; "):
        require_file(special[kind], "weights")


def test_a_missing_file(tmp_path):
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("nowhere", "link"):
        with pytest.raises(UserError, match=f"{name}: expected weights, got: No such file or directory"):
            require_file(tmp_path / name, "weights")
    with pytest.raises(UserError, match="expected weights, got: File name too long"):
        require_file("x" * 10_000, "weights")


def test_sums_tell_a_changed_byte_of_an_archive(tmp_path):
    path = tmp_path / "weights.bin"
    torch.save({"a": torch.arange(1000)}, path)
    check_sums(path)
    content = bytearray(path.read_bytes())
    place = content.index(torch.arange(1000).numpy().tobytes()) + 4321
    content[place] ^= 1
    path.write_bytes(content)
    assert not torch.equal(torch.load(path)["a"], torch.arange(1000))  # torch does not tell
    with pytest.raises(zipfile.BadZipFile, match="Bad CRC-32"):
        check_sums(path)


def test_what_has_no_sums_is_left_alone(tmp_path):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.arange(1000)}, tmp_path / "without.bin")
    finally:
        torch.serialization.set_crc32_options(before)
    torch.save({"a": torch.arange(10)}, tmp_path / "legacy.bin", _use_new_zipfile_serialization=False)
    (tmp_path / "empty.bin").touch()
    for name in ("without", "legacy", "empty"):
        check_sums(tmp_path / f"{name}.bin")


class Malicious:
    def __reduce__(self):
        return os.getcwd, ()


def test_a_reason_is_one_short_line():
    assert reason(EOFError()) == "EOFError"
    assert reason(ValueError("a\n\tb")) == "ValueError: a b"
    assert len(reason(ValueError("x" * 10_000))) < 400


def test_the_reason_does_not_advise_to_run_a_pickle():
    with pytest.raises(pickle.UnpicklingError) as error:
        torch.load(io.BytesIO(pickle.dumps(Malicious(), protocol=2)), weights_only=True)
    assert "weights_only" in str(error.value)
    told = reason(error.value)
    assert "posix.getcwd" in told
    assert "weights_only" not in told
