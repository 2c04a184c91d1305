"""Folders of CrossEncoder by their settings: those that change a score are refused."""

import json
import shutil

import pytest

from bertorch.encoder.cross_encoder import is_cross_encoder
from bertorch.errors import UserError
from tests.conftest import TINY

sentence_transformers = pytest.importorskip("sentence_transformers")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    sentence_transformers.CrossEncoder(str(TINY), num_labels=1, device="cpu").save_pretrained(str(folder))
    return folder


@pytest.fixture
def copied(saved, tmp_path):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    return tmp_path


def edit(file, **changes) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_a_cross_encoder_is_known(saved, tmp_path):
    assert is_cross_encoder(str(saved))
    assert not is_cross_encoder(str(TINY))
    (tmp_path / "config_sentence_transformers.json").write_text('{"model_type": "SentenceTransformer"}')
    assert not is_cross_encoder(str(tmp_path))


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("config_sentence_transformers.json", {"default_prompt_name": "query"}, "without a prompt, got .* 'query'"),
        (
            "sentence_bert_config.json",
            {"transformer_task": "text-generation"},
            "got transformer_task: 'text-generation'",
        ),
        ("sentence_bert_config.json", {"do_lower_case": True}, "that can be opened, got do_lower_case: True"),
        ("sentence_bert_config.json", {"unheard": 1}, "that can be opened, got unheard: 1"),
    ],
)
def test_settings_that_would_change_scores_are_refused(file, changes, message, copied):
    edit(copied / file, **changes)
    with pytest.raises(UserError, match=message):
        is_cross_encoder(str(copied))


@pytest.mark.parametrize("value", [None, 64])
def test_settings_that_change_none_are_fine(value, copied):
    edit(copied / "sentence_bert_config.json", max_seq_length=value, do_lower_case=False)
    assert is_cross_encoder(str(copied))


@pytest.mark.parametrize(
    ("modules", "got"), [([], "nothing"), ([{"path": "", "type": "x.LogitScore"}], "x.LogitScore")]
)
def test_other_modules_are_refused(modules, got, copied):
    (copied / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(UserError, match=f"expected a CrossEncoder of one Transformer, got {got}"):
        is_cross_encoder(str(copied))


@pytest.mark.parametrize("modules", [["Transformer"], {"a": 1}, [[1]]])
def test_damaged_modules_are_refused(modules, copied):
    (copied / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(UserError, match="expected settings as sentence-transformers saves them, got"):
        is_cross_encoder(str(copied))
