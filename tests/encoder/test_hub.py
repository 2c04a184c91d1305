import shutil
import socket
import time

import pytest
from huggingface_hub import constants

from bertorch.encoder import hub
from bertorch.encoder.pretrained import load_tokenizer
from bertorch.errors import UserError
from tests.conftest import TINY


@pytest.fixture
def online(monkeypatch, tmp_path):
    """As without HF_HUB_OFFLINE; takes the address of the hub, whose cache is empty."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "PATIENCE", 0.3)
    hub._obstacle.cache_clear()
    yield lambda address: monkeypatch.setattr(constants, "ENDPOINT", address)
    hub._obstacle.cache_clear()


def told(name: str) -> str:
    with pytest.raises(UserError) as error:
        load_tokenizer(name)
    return str(error.value)


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "a/b/c", "", "~/model", "two words"])
def test_what_is_no_name_of_the_hub_is_a_folder_that_is_not_there(name, online):
    online("http://127.0.0.1:9")
    message = told(name)
    assert message.startswith(f"--pretrained_model_name_or_path {name}: expected a model of the hub or a local folder")
    assert "got no folder of this name" in message
    assert "127.0.0.1" not in message  # nobody was asked


def test_a_mistyped_folder_is_recognised(online):
    online("http://127.0.0.1:9")
    assert f"got no folder of this name (is it {TINY}?)" in told(str(TINY.with_name("bert-tiny-zn")))


def test_a_hub_that_refuses_the_connection(online):
    online("http://127.0.0.1:9")
    message = told("some/model")
    assert "none in the hub's cache, and http://127.0.0.1:9 cannot be reached (ConnectError: " in message
    for way in ("HF_ENDPOINT", "HF_HUB_OFFLINE=1", "the folder of a model that is here"):
        assert way in message


def test_a_hub_that_does_not_answer(online):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        online(f"http://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        assert "some/model" in told("some/model")
        assert time.monotonic() - began < 5


def test_a_cached_model_needs_no_hub(online, tmp_path, log_lines):
    online("http://127.0.0.1:9")
    commit = "0" * 40
    repository = tmp_path / "cache" / "models--some--model"
    shutil.copytree(TINY, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    began = time.monotonic()
    assert load_tokenizer("some/model").vocab_size == load_tokenizer(str(TINY)).vocab_size
    assert time.monotonic() - began < 5
    assert sum("the model is taken from the hub's cache" in line for line in log_lines) == 1


def test_offline_nobody_is_asked(online, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "none in the hub's cache, and HF_HUB_OFFLINE is set" in told("some/model")
