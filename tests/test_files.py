import io
import json
import os
import pickle
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from bertorch.errors import UserError
from bertorch.files import (
    check_sums,
    is_stream,
    reason,
    refuse_existing,
    require_file,
    to_json,
    whole_output,
    write_files,
    write_lines,
)


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
    index = content.index(torch.arange(1000).numpy().tobytes()) + 4321
    content[index] ^= 1
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
    message = reason(error.value)
    assert "posix.getcwd" in message
    assert "weights_only" not in message


def test_what_is_there_is_replaced_only_on_demand(tmp_path, special):
    there, link, gone = (tmp_path / name for name in ("there", "link", "gone"))
    there.touch()
    link.symlink_to("gone")
    refuse_existing([str(gone)], overwrite=False)
    with pytest.raises(
        UserError, match=f"{there}: expected no file of this name, got one; name another, or add --over"
    ):
        refuse_existing([str(gone), str(there)], overwrite=False)
    refuse_existing([str(there), str(gone)], overwrite=True)
    with pytest.raises(UserError, match=f"{gone}: expected another file for each output, got this one twice"):
        refuse_existing([str(link), str(gone)], overwrite=True)
    for kind, path in special.items():
        with pytest.raises(UserError, match=f"expected the name of a file, got a {kind}"):
            refuse_existing([str(path)], overwrite=True)


def test_lines_are_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "folder" / "file"
    write_lines(str(path), ["一", "b\r"])
    assert path.read_bytes() == "一\nb\r\n".encode()
    link = path.with_name("link")
    link.symlink_to("file")
    write_lines(str(link), [])
    assert link.is_symlink()
    assert path.read_bytes() == b""

    def broken():
        yield "a"
        raise KeyboardInterrupt

    path.write_text("before")
    with pytest.raises(KeyboardInterrupt):
        write_lines(str(path), broken())
    with pytest.raises(UserError, match="file: expected text to write, got half a surrogate pair"):
        write_lines(str(path), ["a", "\ud800"])
    assert path.read_text() == "before"
    with pytest.raises(UserError, match="file/x: expected a file that can be written, got: "):
        write_lines(str(path / "x"), ["a"])
    assert sorted(item.name for item in path.parent.iterdir()) == ["file", "link"]


def test_files_that_belong_together_are_never_of_two_times(tmp_path, monkeypatch):
    """An error leaves the older ones; where the process ends in between, one is missing."""
    first, second = (tmp_path / name for name in ("a", "b"))
    for file in (first, second):
        file.write_text("old\n")
    with pytest.raises(UserError, match="half a surrogate pair"):
        write_files({str(first): ["new"], str(second): ["\ud800"]})
    assert [file.read_text() for file in (first, second)] == ["old\n", "old\n"]
    replace = Path.replace

    def killed(self, target):
        replace(self, target)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            write_files({str(first): ["new"], str(second): ["new"]})
    assert sorted(path.read_text() for path in tmp_path.iterdir()) == ["new\n"]
    write_files({str(first): ["1", "2"], str(second): []})
    assert [file.read_text() for file in (first, second)] == ["1\n2\n", ""]


def test_an_input_is_no_output(tmp_path):
    file, link = tmp_path / "a", tmp_path / "link"
    file.touch()
    link.symlink_to(file)
    with pytest.raises(UserError, match="expected another file for the output, got one that is read"):
        refuse_existing([str(link)], overwrite=True, inputs=[None, str(file)])


def test_the_output_behind_a_link_takes_its_place_there(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    link.symlink_to("target")
    with whole_output(str(link), overwrite=True) as file:
        file.write("a")
    assert link.is_symlink()
    assert target.read_text() == "a"


HOSTILE = "tab\t, line\n, \u2028, \u2029, \x85, \x0b, `tick`, \ud800"


@pytest.mark.parametrize("indent", [None, 2])
def test_json_is_utf8_and_a_line_whatever_is_in_it(indent):
    text = to_json({HOSTILE: [HOSTILE, "我", 1.5, None]}, indent=indent)
    assert json.loads(text.encode()) == {HOSTILE: [HOSTILE, "我", 1.5, None]}
    assert len(text.splitlines()) == (1 if indent is None else 8)
    assert "我" in text


def test_a_stream_is_written_as_it_comes_and_is_no_file_that_is_there(special):
    reader = os.open(special["pipe"], os.O_RDONLY | os.O_NONBLOCK)
    with whole_output(str(special["pipe"]), overwrite=False) as file:
        file.write("一\n")
        file.flush()
        assert os.read(reader, 100) == "一\n".encode()
    abandoned = whole_output(str(special["pipe"]), overwrite=False)
    abandoned.__enter__().write("b")
    os.close(reader)
    with pytest.raises(BrokenPipeError):
        abandoned.__exit__(None, None, None)
    with whole_output(os.devnull, overwrite=False) as file:
        file.write("a")
    assert [kind for kind in sorted(special) if is_stream(str(special[kind]))] == ["device", "pipe"]
    assert is_stream("-")
    assert not is_stream(str(special["pipe"]) + "x")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("path", ["-", "/dev/full"])
def test_a_full_device_gives_one_error(path, monkeypatch):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        message = "expected a file that can be written, got: No space left on device"
        with pytest.raises(UserError, match=message), whole_output(path, overwrite=False) as file:
            file.write("a\n")
        full.flush()  # as at exit


def test_a_closed_standard_output_is_told(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    with (
        pytest.raises(UserError, match="expected standard output, got a closed one"),
        whole_output("-", overwrite=False),
    ):
        pass


def test_the_folder_of_an_output_is_made(tmp_path):
    with whole_output(str(tmp_path / "a" / "b"), overwrite=False) as file:
        file.write("c")
    assert (tmp_path / "a" / "b").read_text() == "c"


@pytest.mark.parametrize("name", ["file/inside", "x" * 5000])
def test_an_output_that_cannot_be_is_refused_before_the_work(name, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="expected a file that can be written, got: "):
        refuse_existing([str(tmp_path / name)], overwrite=True)
