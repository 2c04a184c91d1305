"""The script itself, as a user starts it, on the embedded checkpoint and samples."""

import json
import re
from itertools import permutations

import pytest
import torch

from bertorch import predict
from bertorch.config import NERConfig
from bertorch.errors import UserError
from bertorch.inference.load import load_trained
from bertorch.training.metrics_file import METRICS, read_metrics
from run_ner import run
from tests.conftest import NER, NESTED, TINY, launcher, run_script
from tests.log_lines import F1_LINE, TRAINING_LINE, assert_refused, command, last_result, matches


def arguments(saved_dir, **settings):
    options = {"label_file": NER / "labels.txt"}
    return command("run_ner.py", NER / "train.json", NER / "dev.json", saved_dir, **(options | settings))


def test_log_lines_to_the_letter(folders):
    _, log = folders.run("ner with a CRF")
    lines = [tuple(map(int, line.groups())) for line in matches(TRAINING_LINE, log)]
    assert lines == [(20, 2, 10), (40, 4, 10)]  # 320 sentences, 10 steps an epoch
    assert len(matches(F1_LINE, log)) == 2  # step 25 and the last, 40
    assert "learning rate: 0.001, of the head: 0.005" in log
    assert re.search(r"precision  recall      F1  support\n.*PER +0\.\d{5} 0\.\d{5} 0\.\d{5} +\d+\n", log)
    assert re.search(r"best dev F1: 0\.\d{5} at step \d+\n", log)


def test_it_learns_to_find_entities(folders):
    assert last_result(F1_LINE, folders.run("ner with a CRF")[1]) > 0.45


def test_it_warm_starts_where_it_ended(folders, tmp_path):
    folder, log = folders.run("ner with a CRF")
    settings = {"use_crf": True, "max_seq_length": 32, "max_steps": 1, "learning_rate": 0, "crf_learning_rate": 0}
    again = run_script(*arguments(tmp_path, **settings, init_from_ckpt=folder))
    assert last_result(F1_LINE, again.stderr) == last_result(F1_LINE, log)
    assert re.search(r"loaded (\d+) of \1 tensors", again.stderr)
    assert torch.equal(*(load_trained(path).span_model.crf.transitions for path in (folder, tmp_path)))


def nested_arguments(saved_dir, **settings):
    options = {"label_file": NESTED / "labels.txt", "max_seq_length": 32} | settings
    return command("run_ner.py", NESTED / "train.json", NESTED / "dev.json", saved_dir, **options)


def test_entities_that_overlap(folders):
    folder, log = folders.run("nested")
    assert last_result(F1_LINE, log) > 0.6
    assert "decoding: nested: some entities of the training data overlap" in log
    assert "learning rate: 0.001, of the head: 0.001" in log
    assert re.search(r"data: train: entities: LOC \d+, PER \d+, ", log)
    gold = sum(len(json.loads(line)["entities"]) for line in (NESTED / "dev.json").read_text().splitlines())
    assert re.search(rf"micro average .* {gold}\n", log)
    card = (folder / "README.md").read_text()
    assert "The head is a global pointer (global_pointer, 64 dimensions) with\n# nested decoding: entities may" in card
    assert f'load("{folder}").tag([' in card


@pytest.mark.slow
def test_a_global_pointer_warm_starts_where_it_ended(folders, tmp_path):
    folder, log = folders.run("nested")
    settings = {"head": "global_pointer", "max_steps": 1, "learning_rate": 0, "init_from_ckpt": folder}
    again = run_script(*nested_arguments(tmp_path / "again", **settings))
    assert last_result(F1_LINE, again.stderr) == last_result(F1_LINE, log)
    assert re.search(r"loaded (\d+) of \1 tensors", again.stderr)
    anew = run_script(*nested_arguments(tmp_path / "anew", **settings, new_head=True))
    assert "missing: global_pointer." in anew.stderr
    ours, before = (load_trained(path).model.weights.state_dict() for path in (tmp_path / "anew", folder))
    for name, tensor in before.items():  # without the pooler, which has no gradient and no use
        assert torch.equal(ours[name], tensor) == name.startswith("bert."), name


@pytest.mark.slow
def test_some_layers_of_a_global_pointer_on_two_processes(folders, tmp_path):
    """With windows, accumulation and a cache; the folder opens, and its rate is the one given."""
    settings = {"head": "global_pointer", "crf_learning_rate": 3e-3, "layers_from": "0,2", "layer_decay": 0.9}
    settings |= {"freeze_layers": 1, "ema_decay": 0.9, "gradient_accumulation_steps": 2, "max_seq_length": 10}
    settings |= {"batch_size": 8, "max_steps": 2, "cache_dir": tmp_path / "cache", "head_size": 32}
    done = run_script(*nested_arguments(tmp_path / "run", **settings), launcher=launcher())
    assert "of the head: 0.003" in done.stderr
    assert len(matches(F1_LINE, done.stderr)) == 1
    task = load_trained(tmp_path / "run")
    assert (task.model.config.num_hidden_layers, task.span_model.head_size) == (2, 32)


def overlap(line: str) -> bool:
    """Whether two entities share a character."""
    pairs = permutations(json.loads(line)["entities"], 2)
    return any(one["start"] <= other["start"] < one["end"] for one, other in pairs)


@pytest.mark.slow
@pytest.mark.parametrize("head", [{}, {"use_crf": True}, {"head": "crf"}])
def test_heads_with_tags_refuse_entities_that_overlap(head, tmp_path):
    """In the training file, and in a dev file beside flat training data."""
    train, dev = ((NESTED / name).read_text().splitlines() for name in ("train.json", "dev.json"))
    first, first_dev = (1 + [overlap(line) for line in lines].index(True) for lines in (train, dev))
    assert_refused(f"train.json:{first}:", *nested_arguments(tmp_path / "run", **head))
    flat = tmp_path / "flat.json"
    flat.write_text("".join(line + "\n" for line in train if not overlap(line)))
    options = {"label_file": NESTED / "labels.txt", "max_seq_length": 32} | head
    refused = command("run_ner.py", flat, NESTED / "dev.json", tmp_path / "run", **options)
    assert_refused(f"dev.json:{first_dev}:", *refused)
    done = run_script(*command("run_ner.py", flat, flat, tmp_path / "run", max_steps=1, **options))
    assert len(matches(F1_LINE, done.stderr)) == 1


@pytest.mark.slow
def test_tagged_data_for_a_global_pointer_is_flat(tmp_path):
    """The types come from the tags; its folder says the tags of its entities."""
    settings = {"head": "global_pointer", "max_seq_length": 32, "max_steps": 2, "learning_rate": 1e-3}
    done = run_script(*arguments(tmp_path / "run", **settings))
    assert "decoding: flat: no entities of the training data overlap" in done.stderr
    tags = [tag for line in (NER / "dev.json").read_text().splitlines() for tag in json.loads(line)["label"]]
    gold = sum(tag[0] in "BS" for tag in tags)
    assert re.search(rf"micro average .* {gold}\n", done.stderr)
    task = load_trained(tmp_path / "run")
    assert list(task.label_names) == ["PER", "LOC", "ORG"]
    assert task.span_model.is_flat
    (tmp_path / "in.txt").write_text("他在北京。\n")
    options = {"model_dir": "run", "input_file": "in.txt", "output_file": "out.json"}
    paths = {name: str(tmp_path / path) for name, path in options.items()}
    predict.run(predict.PredictConfig(**paths, tags=True))
    assert len(json.loads((tmp_path / "out.json").read_text())["tags"]) == 5


@pytest.mark.slow
def test_flat_decoding_of_nested_data_is_warned_of(tmp_path):
    settings = {"head": "global_pointer", "decoding": "flat", "max_steps": 1}
    done = run_script(*nested_arguments(tmp_path, **settings))
    assert "--decoding flat: entities of the training data overlap" in done.stderr
    assert load_trained(tmp_path).span_model.decoding == "flat"


@pytest.mark.slow
def test_short_windows_on_two_processes(tmp_path):
    """Sentences in windows of ten tokens: no entity is lost."""
    settings = {"epochs": 1, "logging_steps": 5, "max_seq_length": 10, "use_crf": True, "constrain_crf": True}
    done = run_script(*arguments(tmp_path, **settings), launcher=launcher("torch.distributed.launch"))
    assert "train: 320 examples, dev: 90, 5 optimisation steps" in done.stderr
    assert len(matches(F1_LINE, done.stderr)) == 1
    lines = (NER / "dev.json").read_text().splitlines()
    gold = sum(tag[0] in "BS" for line in lines for tag in json.loads(line)["label"])
    assert re.search(rf"micro average .* {gold}\n", done.stderr)


@pytest.mark.slow
def test_part_of_the_training_sentences_is_enough_to_evaluate_on_two_processes(tmp_path):
    options = {"train_data_file": NER / "train.json", "label_file": NER / "labels.txt", "dev_ratio": 0.2}
    options |= {"pretrained_model_name_or_path": TINY, "saved_dir": tmp_path, "max_seq_length": 32}
    options |= {"max_steps": 3, "eval_steps": 1, "logging_steps": 1, "patience": 9}
    flat = [part for name, value in options.items() for part in (f"--{name}", value)]
    done = run_script("run_ner.py", *flat, launcher=launcher())
    assert "train: 256 examples, dev: 64, 3 optimisation steps" in done.stderr
    *lines, _ = read_metrics(tmp_path / METRICS)  # the last one says where the time went
    assert [(line["step"], "dev_F1" in line) for line in lines] == [
        (s, dev) for s in (1, 2, 3) for dev in (False, True)
    ]
    told = [f"{line['dev_F1']:.5f}" for line in lines if "dev_F1" in line]
    assert told == [line.group(1) for line in matches(F1_LINE, done.stderr)]


@pytest.mark.parametrize(
    ("settings", "warned"),
    [({}, False), ({"use_crf": True, "crf_learning_rate": 1e-3}, False), ({"crf_learning_rate": 1e-3}, True)],
)
def test_a_rate_of_the_crf_without_a_crf_is_said(settings, warned, log_lines):
    with pytest.raises(UserError, match="nowhere"):
        run(NERConfig(train_data_file="nowhere", label_file="nowhere", **settings))
    assert any("without --use_crf it changes nothing" in line for line in log_lines) is warned


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tag": "bio"}, "labels.txt:4: expected a tag of --tag bio (O, B-…, I-…), got 'S-PER'"),
        ({"train_data_file": NER / "labels.txt"}, "labels.txt:1:1: expected a JSON object"),
    ],
)
def test_mistakes_end_with_exit_code_2_and_no_traceback(settings, message, tmp_path):
    assert_refused(message, *arguments(tmp_path, **settings))
