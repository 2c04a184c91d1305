"""From a teacher's folder to a student: the commands as a user gives them."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification

from bertorch import encode, load, predict
from tests.conftest import MATCHING, NER, PARAPHRASES, REVIEWS, SENTENCES, STS, run_script
from tests.log_lines import command

TRAINING = {"epochs": 1, "max_seq_length": 32, "max_steps": 3, "logging_steps": 1, "save_steps": 2}


def logits_of(model: Path, train: Path, columns: int, folder: Path) -> Path:
    """`cut -f1-COLUMNS train | predict --logits`."""
    lines = [line.split("\t")[:columns] for line in train.read_text().splitlines()]
    (folder / "texts.txt").write_text("".join("\t".join(line) + "\n" for line in lines))
    output = folder / "teacher.npy"
    options = {"input_file": str(folder / "texts.txt"), "output_file": str(output), "logits": True}
    predict.run(predict.PredictConfig(model_dir=str(model), **options))
    return output


def vectors_of(model: Path, train: Path, folder: Path) -> Path:
    output = folder / "teacher.npy"
    columns = 1 + train.read_text().splitlines()[0].count("\t")
    options = {"model_dir": str(model), "input_file": str(train), "output_file": str(output)}
    encode.run(encode.EncodeConfig(columns=columns, **options))
    return output


@pytest.mark.slow
def test_a_shallow_classifier_learns_from_a_deeper_one(folders, tmp_path):
    """It begins with layers of its teacher; the folder opens as any other."""
    model, train, student = folders["classifier"], REVIEWS / "train.txt", tmp_path / "student"
    settings = {"label_file": REVIEWS / "labels.txt", "pretrained_model_name_or_path": model, "layers_from": "0,2,4"}
    settings |= {"teacher": logits_of(model, train, 1, tmp_path), "learning_rate": 0}
    run_script(*command("run_classifier.py", train, REVIEWS / "dev.txt", student, **TRAINING, **settings))
    weights, teacher = (torch.load(each / "pytorch_model.bin") for each in (student, model))
    for number, old in enumerate((0, 2, 4)):
        name = "bert.encoder.layer.{}.attention.self.query.weight"
        assert torch.equal(weights[name.format(number)], teacher[name.format(old)])
    assert torch.equal(weights["classifier.weight"], teacher["classifier.weight"])
    assert AutoModelForSequenceClassification.from_pretrained(student).config.num_hidden_layers == 3
    assert load(student).predict(["房间干净。"])[0].label in ("negative", "positive")


@pytest.mark.slow
def test_sentence_bert_learns_from_a_classifier_of_pairs(folders, tmp_path):
    train = MATCHING / "train.txt"
    settings = {"teacher": logits_of(folders["matching"], train, 2, tmp_path), "teacher_temperature": 1.5}
    done = run_script(
        *command("run_sentencebert.py", train, MATCHING / "dev.txt", tmp_path / "run", **TRAINING, **settings)
    )
    assert "global step: 3" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("script", "train"), [("run_simcse.py", SENTENCES), ("run_batchneg.py", PARAPHRASES)])
def test_vectors_of_another_width(script, train, folders, tmp_path):
    settings = {"teacher": vectors_of(folders["batchneg"], train, tmp_path), "pooling_mode": "mean"}
    settings |= {"layers_from": "1,5", "teacher_weight": 0.9}
    run_script(*command(script, train, STS, tmp_path / "run", **TRAINING, **settings))
    assert load(tmp_path / "run").size == 128
    assert AutoModel.from_pretrained(tmp_path / "run").config.num_hidden_layers == 2
    assert not any("projection" in name for name in torch.load(tmp_path / "run" / "pytorch_model.bin"))


@pytest.mark.slow
def test_a_shallow_tagger_goes_on_where_it_stopped(tmp_path):
    options = {"label_file": NER / "labels.txt", "use_crf": True, "layers_from": "0,3"} | TRAINING
    arguments = command("run_ner.py", NER / "train.json", NER / "dev.json", tmp_path / "run", **options)
    run_script(*arguments)
    log = run_script(*arguments, "--resume").stderr
    assert "weights of step 3" in log
    assert load(tmp_path / "run").tag(["他在北京大学读书。"])
