"""The command as a user starts it, on folders of all scripts, against the model in Python."""

import io
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from scipy.special import expit, softmax

from bertorch import load, predict
from bertorch.data.teacher import TeacherRows, TextsDigest
from bertorch.errors import UserError
from bertorch.inference import engine
from bertorch.prepare.annotated_texts import read_annotated_texts
from tests.conftest import MATCHING, NER, NESTED, REVIEWS, launcher, run_processes, run_script

REVIEW_TEXTS = [line.split("\t")[0] for line in (REVIEWS / "dev.txt").read_text().splitlines()]
PAIRS = [line.rpartition("\t")[0] for line in (MATCHING / "dev.txt").read_text().splitlines()]


NESTED_TEXTS = [json.loads(line)["text"] for line in (NESTED / "dev.json").read_text().splitlines()]


def run(folder, lines, tmp_path, monkeypatch, **settings):
    """In this process, with windows of seven inputs."""
    monkeypatch.setattr(engine, "WINDOW", 7)
    source, target = tmp_path / "in.txt", tmp_path / "out.txt"
    source.write_text("".join(line + "\n" for line in lines))
    options = {"model_dir": str(folder), "input_file": str(source), "output_file": str(target)} | settings
    predict.run(predict.PredictConfig(**options))
    return target.read_text().splitlines()


def test_labels_and_probabilities_in_the_order_of_the_input(folders, tmp_path, monkeypatch):
    header, *lines = run(folders["classifier"], REVIEW_TEXTS, tmp_path, monkeypatch)
    assert header == "label\tnegative\tpositive"
    expected = load(folders["classifier"]).predict(REVIEW_TEXTS)
    assert [line.split("\t")[0] for line in lines] == [prediction.label for prediction in expected]
    got = np.array([line.split("\t")[1:] for line in lines], dtype=float)
    np.testing.assert_allclose(got, [list(each.probabilities.values()) for each in expected], atol=1e-5)


@pytest.mark.parametrize(
    ("name", "columns"),
    [("pair classifier", 4), ("nli", 4), ("matching", 3), ("simcse", 1), ("batchneg", 1)],
)
def test_pairs(name, columns, folders, tmp_path, monkeypatch):
    lines = run(folders[name], PAIRS, tmp_path, monkeypatch, no_header=True)
    assert len(lines) == len(PAIRS)
    assert {line.count("\t") + 1 for line in lines} == {columns}
    if columns == 1:
        expected = [each.cosine for each in load(folders[name]).predict([tuple(pair.split("\t")) for pair in PAIRS])]
        np.testing.assert_allclose(np.array(lines, dtype=float), expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "inputs"),
    [("classifier", REVIEW_TEXTS), ("pair classifier", PAIRS), ("nli", PAIRS), ("several labels", REVIEW_TEXTS[:20])],
)
def test_logits(name, inputs, folders, tmp_path, monkeypatch):
    """Their softmax, or sigmoid, is what is predicted without them; an array holds the same, and the texts' hash."""
    lines = run(folders[name], inputs, tmp_path, monkeypatch)
    with_logits = run(folders[name], inputs, tmp_path, monkeypatch, logits=True, overwrite=True)
    assert with_logits[0] == lines[0]
    rows = [[line.split("\t") for line in each[1:]] for each in (lines, with_logits)]
    assert [row[0] for row in rows[0]] == [row[0] for row in rows[1]]
    expected, logits = (np.array([row[1:] for row in each], dtype=float) for each in rows)  # (N, C) each
    got = expit(logits) if name == "several labels" else softmax(logits, axis=1)
    np.testing.assert_allclose(got, expected, atol=2e-6)
    predict.run(predict.PredictConfig(
        model_dir=str(folders[name]), input_file=str(tmp_path / "in.txt"), output_file=str(tmp_path / "a" / "out.npy"),
        logits=True,
    ))  # fmt: skip
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["out.npy", "out.npy.json"]
    teacher = TeacherRows.open(str(tmp_path / "a" / "out.npy"))
    assert teacher.rows.dtype == np.float32
    np.testing.assert_allclose(teacher.rows, logits, atol=2e-6)
    teacher.require_labels(load(folders[name]).labels)
    digest = TextsDigest()
    for line in inputs:
        digest.update(line.split("\t"))
    assert teacher.texts == digest.value


@pytest.mark.parametrize("name", ["score", "simcse", "ner"])
def test_models_without_classes_have_no_logits(name, folders, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="expected a classification model to predict --logits with, got one of run_"):
        run(folders[name], PAIRS, tmp_path, monkeypatch, logits=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"output_file": "out.npy"}, "--output_file out.npy: an array is for --logits; add it, or choose another name"),
        (
            {"output_file": "out.npy", "logits": True, "flush": True},
            "--flush and --no_header are for lines; leave them",
        ),
        (
            {"output_file": "out.tsv", "logits": True, "ranked": True},
            "--ranked is for models with one score, and --log",
        ),
    ],
)
def test_options_that_do_not_go_with_logits(settings, message):
    with pytest.raises(UserError, match=message):
        predict.PredictConfig(model_dir="folder", input_file="in.txt", **settings)


def test_entities_of_plain_text_and_of_tokens(folders, tmp_path, monkeypatch):
    lines = (NER / "dev.json").read_text().splitlines()
    by_tokens = [json.loads(line) for line in run(folders["ner with a CRF"], lines, tmp_path, monkeypatch, tags=True)]
    texts = ["".join(json.loads(line)["text"]) for line in lines]
    by_text = [
        json.loads(line) for line in run(folders["ner with a CRF"], texts, tmp_path, monkeypatch, overwrite=True)
    ]
    for line, text, first, second in zip(lines, texts, by_tokens, by_text, strict=True):
        assert first["text"] == first["tokens"] == json.loads(line)["text"]
        assert len(first["tags"]) == len(first["tokens"])
        assert second["text"] == text
        assert second.keys() == {"text", "entities"}
        assert all(text[each["start"] : each["end"]] == each["text"] for each in second["entities"])
    assert sum(len(each["entities"]) for each in by_text) > 20


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ner with a CRF", "nested"])
def test_only_entities_that_are_sure(name, folders, tmp_path, monkeypatch):
    """With their scores; the lines without the option have none."""
    texts = NESTED_TEXTS
    plain = [json.loads(line) for line in run(folders[name], texts, tmp_path, monkeypatch)]
    found = load(folders[name]).tag(texts)
    scores = sorted(entity.score for each in found for entity in each.entities)
    least = scores[len(scores) // 2]
    for limit in (0.0, least, 1.0):
        lines = run(folders[name], texts, tmp_path, monkeypatch, overwrite=True, min_score=limit)
        kept = 0
        for line, without, each in zip(map(json.loads, lines), plain, found, strict=True):
            assert [set(entity) for entity in line["entities"]] == [{"type", "start", "end", "text", "score"}] * len(
                line["entities"]
            )
            expected = [entity for entity in each.entities if entity.score >= limit - 1e-6]
            assert [entity["score"] for entity in line["entities"]] == pytest.approx(
                [entity.score for entity in expected], abs=2e-6
            )
            bare = [{key: entity[key] for key in ("type", "start", "end", "text")} for entity in line["entities"]]
            assert all(entity in without["entities"] for entity in bare)
            assert limit > 0 or bare == without["entities"]
            kept += len(bare)
        assert (kept > 0) == (limit <= least)
    assert all("score" not in entity for line in plain for entity in line["entities"])


def test_tags_are_of_the_entities_that_are_kept(folders, tmp_path, monkeypatch):
    lines = run(folders["ner with a CRF"], NESTED_TEXTS, tmp_path, monkeypatch, tags=True, min_score=0.6)
    for line in map(json.loads, lines):
        begins = [index for index, tag in enumerate(line["tags"]) if tag[0] in "BS"]
        assert begins == [entity["start"] for entity in line["entities"]]


def test_what_taggers_and_others_cannot(folders, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="--tags: expected a model whose entities never overlap, got one with nested"):
        run(folders["nested"], NESTED_TEXTS, tmp_path, monkeypatch, tags=True)
    with pytest.raises(UserError, match="expected a tagging model to predict --min_score with, got one of run_class"):
        run(folders["classifier"], ["好"], tmp_path, monkeypatch, min_score=0.5)
    with pytest.raises(UserError, match="expected a tagging model to predict --tags with, got one of run_classifier"):
        run(folders["classifier"], ["好"], tmp_path, monkeypatch, tags=True)
    with pytest.raises(UserError, match="expected a tagging model to predict --split with, got one of run_classifier"):
        run(folders["classifier"], ["好"], tmp_path, monkeypatch, split="words")
    with pytest.raises(UserError, match="--min_score is for taggers, and --logits for models with labels"):
        predict.PredictConfig(model_dir="a", input_file="b", output_file="c", min_score=0.5, logits=True)


@pytest.mark.parametrize("first", ["你好", '["苹果"]是书名'])
def test_a_sentence_may_begin_like_a_list(first, folders, tmp_path, monkeypatch):
    texts = [first, '["苹果"]是书名', '["']
    lines = run(folders["ner"], texts, tmp_path, monkeypatch)
    assert [json.loads(line)["text"] for line in lines] == texts


def test_a_text_in_json_is_one(folders, tmp_path, monkeypatch):
    texts = ["他在北京大学读书。", "没有人。"]
    plain = run(folders["ner"], texts, tmp_path, monkeypatch)
    lines = [json.dumps({"text": text, "label": {"name": {}}}) for text in texts]
    assert run(folders["ner"], lines, tmp_path, monkeypatch, overwrite=True) == plain


def test_other_keys_of_a_line_are_repeated(folders, tmp_path, monkeypatch):
    """So that an id comes through an annotation tool."""
    texts, more = ["他在北京大学读书。", "没有人。"], [{"id": 10**20, "meta": {"from": [1.5, None]}}, {}]
    lines = [json.dumps({"text": text, "tags": ["x"], **keys}) for text, keys in zip(texts, more, strict=True)]
    plain = run(folders["ner"], texts, tmp_path, monkeypatch)
    found = run(folders["ner"], lines, tmp_path, monkeypatch, overwrite=True)
    assert [json.loads(line) for line in found] == [
        json.loads(line) | keys for line, keys in zip(plain, more, strict=True)
    ]
    (tmp_path / "predicted.json").write_text("\n".join(found))
    assert read_annotated_texts(str(tmp_path / "predicted.json"))[0].more == more[0]


def test_standard_input_and_output(folders, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("很好\n不好\n\n".encode())))
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out := io.BytesIO()))
    predict.run(
        predict.PredictConfig(model_dir=str(folders["classifier"]), input_file="-", output_file="-", no_header=True)
    )
    assert len(out.getvalue().decode().splitlines()) == 2


@pytest.mark.parametrize("launched", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_two_processes_write_what_one_writes(launched, folders, tmp_path):
    (tmp_path / "in.txt").write_text("\n".join(REVIEW_TEXTS[:41]))
    options = {"model_dir": str(folders["classifier"]), "input_file": str(tmp_path / "in.txt")}
    flat = [part for name, value in options.items() for part in (f"--{name}", value)]
    run_script("bertorch/predict.py", *flat, "--output_file", tmp_path / "one")
    if launched:
        run_script("-m", "bertorch.predict", *flat, "--output_file", tmp_path / "two", launcher=launcher())
    else:
        run_processes(2, predict.run, predict.PredictConfig(**options, output_file=str(tmp_path / "two")))
    one, two = ([line.split("\t") for line in (tmp_path / name).read_text().splitlines()] for name in ("one", "two"))
    assert [row[0] for row in one] == [row[0] for row in two]
    np.testing.assert_allclose(
        np.array([row[1:] for row in one[1:]], float), np.array([row[1:] for row in two[1:]], float), atol=2e-6
    )


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        ("classifier", ["好", "好\t坏"], "in.txt:2: expected 1 column (text), got 2"),
        ("simcse", ["好"], "in.txt:1: expected 2 columns (a⇥b), got 1"),
        ("classifier", ["好", "", "好"], "in.txt:2: expected an example, got an empty line"),
        ("classifier", [], "in.txt: expected one example a line, got no line"),
        ("ner", ['{"text": []}'], 'in.txt:1: expected {"text": ["我", "们"]} or {"text": "我们"} in each line, got'),
        (
            "ner",
            ['{"text": "好"}', '{"text": " "}'],
            'in.txt:2: expected {"text": ["我", "们"]} or {"text": "我们"} in',
        ),
        ("ner", ['{"text": "\\ud800"}'], 'in.txt:1: expected {"text": ["我", "们"]} or {"text": "我们"} in'),
        ("ner", ['{"sentence": "好"}'], '{"text": "我们"} in each line, got the keys sentence'),
        (
            "ner",
            ['{"text": null}', '{"text": "好"}'],
            'in.txt:1: expected {"text": ["我", "们"]} or {"text": "我们"} in',
        ),
        ("ner", ['["我", "们"]'], 'in.txt:1: expected {"text": ["我", "们"]} or {"text": "我们"} in'),
        ("ner", ['[{"text": "我"}]'], 'in.txt:1: expected {"text": ["我", "们"]} or {"text": "我们"} in'),
        ("ner", ['{"text": "a", "text": "b"}'], 'in.txt:1: expected {"text": ["我", "们"]} or {"text": "我们"} in'),
        (
            "classifier",
            ['{"text": "a"}', "b"],
            'in.txt:2:1: expected a JSON object ({"text": "…"}), got: Expecting value',
        ),
        (
            "classifier",
            ['{"text": "a"}', '{"text_a": "a", "text_b": "b"}'],
            'in.txt:2: expected "text" ({"text": "…"}), got',
        ),
        (
            "pair classifier",
            ['{"text": "a"}'],
            'in.txt:1: expected "text_a" ({"text_a": "…", "text_b": "…"} or {"query"',
        ),
        (
            "classifier",
            ['{"text": "a\\ud800"}'],
            'in.txt:1:10: expected text, got half a surrogate pair in "text": \'a',
        ),
        ("ner", ["{}"], 'in.txt:1: expected {"text": ["我", "们"]} or {"text": "我们"} in'),
        ("ner", ["好", '{"text": "好"}'], "in.txt:2: expected plain text, as the first line is, got JSON: '{"),
        ("ner", ["好", '["好", "的"]'], "in.txt:2: expected plain text, as the first line is, got JSON: '["),
        ("ner", ['{"text": ["好"]}', "好"], 'in.txt:2: expected {"text": ["我", "们"]} or {"text": "我们"} in'),
    ],
)
def test_a_malformed_line_leaves_no_file(name, lines, message, folders, request):
    tmp_path, monkeypatch = request.getfixturevalue("tmp_path"), request.getfixturevalue("monkeypatch")
    with pytest.raises(UserError) as error:
        run(folders[name], lines, tmp_path, monkeypatch)
    assert message in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["in.txt"]


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_without_a_traceback_and_without_a_file(sent, code, folders, tmp_path):
    options = ["--model_dir", folders["classifier"], "--input_file", "-", "--output_file", tmp_path / "out.tsv"]
    # What runs in the background, as tests may do, is often told to ignore SIGINT.
    program = (
        "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "runpy.run_module('bertorch.predict', run_name='__main__', alter_sys=True)"
    )
    command = [sys.executable, "-c", program, *map(str, options)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not list(tmp_path.iterdir()):  # it waits for input once its output is open
            time.sleep(0.05)
            assert process.poll() is None
        process.send_signal(sent)
        _, told = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in told
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_not_replaced(folders, tmp_path, monkeypatch):
    (tmp_path / "out.txt").write_text("mine")
    with pytest.raises(UserError, match="out.txt: expected no file of this name, got one"):
        run(folders["classifier"], ["好"], tmp_path, monkeypatch)
    assert (tmp_path / "out.txt").read_text() == "mine"
    assert len(run(folders["classifier"], ["好"], tmp_path, monkeypatch, overwrite=True)) == 2
    (tmp_path / "out.npy.json").write_text("mine")  # the place of the record of an array
    options = {"model_dir": str(folders["classifier"]), "output_file": str(tmp_path / "out.npy"), "logits": True}
    with pytest.raises(UserError, match="out.npy.json: expected no file of this name, got one"):
        predict.run(predict.PredictConfig(input_file=str(tmp_path / "in.txt"), **options))
    with pytest.raises(UserError, match="out.npy.json: expected another file for the output, got one that is read"):
        predict.run(predict.PredictConfig(input_file=str(tmp_path / "out.npy.json"), overwrite=True, **options))
    assert (tmp_path / "out.npy.json").read_text() == "mine"


@pytest.mark.parametrize("written", [str, lambda text: json.dumps({"id": 1, "text": text})], ids=["text", "JSON"])
def test_it_answers_each_line_before_it_reads_the_next(written, folders, tmp_path):
    asked, answered = (tmp_path / name for name in ("asked", "answered"))
    for path in (asked, answered):
        os.mkfifo(path)
    options = {"model_dir": str(folders["classifier"]), "input_file": str(asked), "output_file": str(answered)}
    config = predict.PredictConfig(**options, flush=True)
    thread = threading.Thread(target=predict.run, args=[config], daemon=True)
    thread.start()

    def answer() -> str:
        assert select.select([answers], [], [], 60)[0], "it waits for more"
        return answers.readline().decode()

    with answered.open("rb", buffering=0) as answers, asked.open("wb", buffering=0) as questions:
        assert answer() == "label\tnegative\tpositive\n"
        for text, prediction in zip(REVIEW_TEXTS, load(folders["classifier"]).predict(REVIEW_TEXTS[:3]), strict=False):
            questions.write(f"{written(text)}\n".encode())
            assert answer().split("\t")[0] == prediction.label
    thread.join()


def test_pipes_and_devices_are_no_files_that_are_there(folders, tmp_path):
    (tmp_path / "pipe").mkdir()
    os.mkfifo(pipe := tmp_path / "pipe" / "in")
    threading.Thread(target=pipe.write_text, args=["好\n"]).start()
    options = {"model_dir": str(folders["classifier"]), "input_file": str(pipe), "output_file": os.devnull}
    predict.run(predict.PredictConfig(**options))
    with pytest.raises(UserError, match="/dev/null: expected one example a line, got no line"):
        predict.run(predict.PredictConfig(**options | {"input_file": "/dev/null"}))


@pytest.mark.parametrize("name", ["classifier", "pair classifier", "nli", "simcse"])
def test_inputs_in_json_have_the_results_of_columns(name, folders, tmp_path, monkeypatch):
    lines = REVIEW_TEXTS[:9] if name == "classifier" else PAIRS[:9]
    expected = run(folders[name], lines, tmp_path, monkeypatch)
    for keys in [("text",)] if name == "classifier" else [("text_a", "text_b"), ("query", "candidate")]:
        objects = [dict(zip(keys, line.split("\t"), strict=True)) | {"id": [1, {}]} for line in lines]
        written = [json.dumps(each, ensure_ascii=index % 2 == 0) for index, each in enumerate(objects)]
        assert run(folders[name], written, tmp_path, monkeypatch, overwrite=True) == expected


def test_a_text_in_json_may_have_tabs_and_line_breaks(folders, tmp_path, monkeypatch):
    text = "房间\t干净，\n早餐\u2028也丰富。"
    (line,) = run(folders["classifier"], [json.dumps({"text": text})], tmp_path, monkeypatch, no_header=True)
    (expected,) = load(folders["classifier"]).predict([text])
    assert line.split("\t")[0] == expected.label
    assert float(line.split("\t")[2]) == pytest.approx(expected.probabilities["positive"], abs=1e-5)


def test_labels_with_tabs_and_line_breaks_keep_the_columns(folders, tmp_path, monkeypatch):
    shutil.copytree(folders["classifier"], tmp_path / "named")
    config = json.loads((tmp_path / "named" / "config.json").read_text())
    config["id2label"] = {"0": "bad\tor\nworse", "1": "`good`\u2028"}
    config["label2id"] = {label: int(number) for number, label in config["id2label"].items()}
    (tmp_path / "named" / "config.json").write_text(json.dumps(config))
    lines = run(tmp_path / "named", REVIEW_TEXTS[:9], tmp_path, monkeypatch)
    assert lines[0] == "label\tbad or worse\t`good` "
    assert {line.count("\t") for line in lines} == {2}
    assert len(lines) == 10


def test_texts_with_every_kind_of_line_break_stay_on_a_line_of_json(folders, tmp_path, monkeypatch):
    text = "他在\u2028北京\x85大学\u2029。"
    [line] = run(folders["ner"], [json.dumps({"text": text})], tmp_path, monkeypatch)
    assert json.loads(line)["text"] == text
