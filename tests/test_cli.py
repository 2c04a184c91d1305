"""The command line is frozen: names, defaults and meanings that people have in their shell history."""

import re
import sys
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest

from bertorch import cli
from bertorch.config import ENTITY_HEADS, BatchNegConfig, ClassifierConfig, NERConfig, option
from bertorch.errors import InterruptedRunError, UserError
from bertorch.evaluate import EvaluateConfig
from bertorch.tasks.tagging import HEADS
from bertorch.training.run_options import plain_options
from run_sentencebert import SentenceBertConfig
from run_simcse import SimCSEConfig

REQUIRED = ["--train_data_file", "train.txt", "--label_file", "labels.txt"]
MULTI_LABEL = [*REQUIRED, "--problem_type", "multi_label"]
SHARED = {
    "local_rank": -1,
    "pretrained_model_name_or_path": "bert-base-chinese",
    "init_from_ckpt": None,
    "train_data_file": "train.txt",
    "dev_data_file": None,
    "batch_size": 32,
    "scheduler": "linear",
    "learning_rate": 5e-5,
    "warmup_proportion": 0,
    "seed": 1000,
    "save_steps": 100,
    "logging_steps": 20,
    "weight_decay": 0.0,
    "epochs": 3,
    "max_seq_length": 128,
    "saved_dir": "./checkpoint",
    "max_grad_norm": 1.0,
    "save_best_model": False,
    # beyond the published options
    "precision": "auto",
    "gradient_accumulation_steps": 1,
    "on_bad_line": "stop",
    "resume": False,
    "overwrite": False,
    "save_interval": 30.0,
    "keep_checkpoints": 1,
    "save_format": "bin",
    "deterministic": False,
    "adversarial_epsilon": None,
    "ema_decay": None,
    "cache_dir": None,
    "new_head": False,
    "cuda_graphs": "auto",
    "compile": "auto",
    "gradient_checkpointing": False,
    "dev_ratio": None,
    "r_drop": None,
    "layer_decay": None,
    "freeze_layers": None,
    "layers_from": None,
    "eval_steps": None,
    "max_steps": None,
    "patience": None,
    "tensorboard_dir": None,
    "threads": None,
}
FILES = {"more_train_data_files": (), "mix": "proportional"}
TEACHER = {"teacher": None, "teacher_weight": 0.5, "teacher_temperature": 2.0}
CONTRASTIVE = {
    "margin": 0.2,
    "scale": 20,
    "pooling_mode": "linear",
    "output_emb_size": None,
    # beyond the published options
    "gather_negatives": False,
    "keep_duplicates": False,
    "micro_batch_size": None,
    "matryoshka": None,
    **FILES,
    **TEACHER,
}
OWN = {
    ClassifierConfig: {
        "label_file": "labels.txt",
        "is_text_pair": False,
        "problem_type": "single_label",
        "multi_label_loss": "bce",
        "label_separator": ",",
        "windows": 1,
        # beyond the published options
        "class_weights": "none",
        "label_smoothing": 0.0,
        "focal_gamma": 0.0,
        "logit_adjustment": 0.0,
        "folds": None,
        **TEACHER,
    },
    SentenceBertConfig: {
        "label_file": None,
        "is_nli": False,
        "pooling_mode": "linear",
        "concat_multiply": False,
        "output_emb_size": None,
        # beyond the published options
        "folds": None,
        "matryoshka": None,
        **FILES,
        **TEACHER,
    },
    SimCSEConfig: {"epochs": 1, "dropout": 0.1, **CONTRASTIVE},
    BatchNegConfig: {
        "mean_loss": False,
        "loss": "in_batch_negatives",
        "score_range": "0,1",
        **CONTRASTIVE,
        "query_prompt": None,
        "passage_prompt": None,
    },
    NERConfig: {
        "label_file": "labels.txt",
        "tag": "bios",
        "use_crf": False,
        "crf_learning_rate": 5e-5,
        # beyond the published options
        "constrain_crf": False,
        "folds": None,
        "split": "characters",
        "head": None,
        "head_size": 64,
        "decoding": "auto",
    },
}
SCRIPTS = pytest.mark.parametrize("script", OWN, ids=lambda script: script.__name__)
VALUES = {
    "problem_type": "single_label", "multi_label_loss": "bce", "label_separator": ",", "windows": 3,
    "class_weights": "balanced", "label_smoothing": 0.1,
    "cuda_graphs": "off",
    "compile": "on",
    "local_rank": 1, "pretrained_model_name_or_path": "m", "init_from_ckpt": "w.bin", "train_data_file": "t",
    "dev_data_file": "d", "batch_size": 8, "scheduler": "cosine", "learning_rate": 0.01, "warmup_proportion": 0.1,
    "seed": 7, "save_steps": 5, "logging_steps": 6, "weight_decay": 0.2, "epochs": 2, "max_seq_length": 64,
    "saved_dir": "s", "max_grad_norm": 0.5, "label_file": "l", "precision": "bf16",
    "gradient_accumulation_steps": 4, "on_bad_line": "skip", "margin": 0.3, "scale": 5.0, "dropout": 0.2,
    "pooling_mode": "mean", "output_emb_size": 16, "micro_batch_size": 3, "tag": "bio", "crf_learning_rate": 0.001,
    "save_interval": 1.5, "keep_checkpoints": 2, "save_format": "both", "adversarial_epsilon": 0.5, "ema_decay": 0.99,
    "cache_dir": "c", "eval_steps": 3, "max_steps": 50, "patience": 2, "tensorboard_dir": "b", "threads": 2,
    "matryoshka": "16,8", "r_drop": 4.0, "layer_decay": 0.8,
    "more_train_data_files": ("m", "n"), "mix": "equal", "query_prompt": "q: ", "passage_prompt": "p: ",
    "teacher": "t.npy", "teacher_weight": 0.25, "teacher_temperature": 3.0, "split": "words",
}  # fmt: skip


# What each contradicts: --resume; --dev_data_file twice; --adversarial_epsilon; --label_smoothing twice; --mean_loss;
# --init_from_ckpt; --use_crf.
CONTRADICTING = (
    "overwrite", "dev_ratio", "folds", "freeze_layers", "focal_gamma", "logit_adjustment", "loss", "score_range",
    "layers_from", "head", "head_size", "decoding",
)  # fmt: skip


def required(script) -> list[str]:
    return REQUIRED if script in (ClassifierConfig, NERConfig) else REQUIRED[:2]


@SCRIPTS
def test_defaults(script):
    assert vars(cli.parse(script, required(script))) == SHARED | OWN[script]


@SCRIPTS
def test_every_option_takes_a_value(script):
    expected = {}
    arguments = []
    for name, default in (SHARED | OWN[script]).items():
        # --teacher has the rows of one file, without skipped lines.
        if (
            name in CONTRADICTING
            or (name == "r_drop" and script in (SimCSEConfig, BatchNegConfig))
            or (
                name in TEACHER
                if "more_train_data_files" in OWN[script]
                else name == "on_bad_line" and "teacher" in OWN[script]
            )
        ):
            expected[name] = default
            continue
        expected[name] = True if isinstance(default, bool) else VALUES[name]
        value = () if isinstance(default, bool) else VALUES[name] if isinstance(default, tuple) else (VALUES[name],)
        arguments += [f"--{name}", *map(str, value)]
    assert vars(cli.parse(script, arguments)) == expected


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("pooling_mode", "max", "invalid choice: 'max'"),
        ("output_emb_size", "0", "expected at least 1, got 0"),
        ("micro_batch_size", "0", "expected at least 1, got 0"),
        ("scale", "-1", "expected at least 0.0, got -1"),
        ("dropout", "1", "expected at most 0.99, got 1"),
    ],
)
def test_bounds_of_the_options_of_embeddings(option, value, message, capsys):
    with pytest.raises(SystemExit):
        cli.parse(SimCSEConfig, [*REQUIRED[:2], f"--{option}", value])
    assert f"argument --{option}: {message}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("64,big", "--matryoshka: expected numbers with commas between them, such as 768,512,256,128,64, got '64,big'"),
        ("64,32,64", "--matryoshka: expected different numbers from 1 on, got 64,32,64"),
        ("64,0", "--matryoshka: expected different numbers from 1 on, got 64,0"),
        ("64,16", "--matryoshka: expected at most the 32 of --output_emb_size, got 64"),
    ],
)
@pytest.mark.parametrize("script", [SentenceBertConfig, SimCSEConfig, BatchNegConfig])
def test_widths_that_make_no_sense(script, value, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.parse(script, [*REQUIRED[:2], "--output_emb_size", "32", "--matryoshka", value])
    assert exit_.value.code == 2
    assert message in re.sub(r"\s+", " ", capsys.readouterr().err)


def test_several_labels_a_text():
    config = cli.parse(ClassifierConfig, [*MULTI_LABEL, "--multi_label_loss", "zlpr", "--label_separator", "|"])
    assert (config.multi_label_loss, config.label_separator) == ("zlpr", "|")


@pytest.mark.parametrize("script", [SimCSEConfig, BatchNegConfig])
def test_r_drop_is_not_for_embeddings(script, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.parse(script, [*REQUIRED[:2], "--r_drop", "1"])
    assert exit_.value.code == 2
    assert (
        "--r_drop compares probabilities of classes, which sentence embeddings do not have" in capsys.readouterr().err
    )


@pytest.mark.parametrize("script", [SimCSEConfig, BatchNegConfig])
def test_vectors_of_a_teacher_have_no_temperature(script, capsys):
    with pytest.raises(SystemExit):
        cli.parse(script, [*REQUIRED[:2], "--teacher", "t.npy", "--teacher_temperature", "1"])
    assert "--teacher_temperature is for the logits of classes" in capsys.readouterr().err


@pytest.mark.parametrize("scheme", ["bio", "bios", "bioes"])
def test_the_tag_schemes(scheme):
    assert cli.parse(NERConfig, [*REQUIRED, "--tag", scheme]).tag == scheme


POINTER = ["--head", "global_pointer"]


@pytest.mark.parametrize(
    ("arguments", "head"),
    [
        ([], "linear"),
        (["--head", "linear"], "linear"),
        (["--use_crf"], "crf"),
        (["--head", "crf"], "crf"),
        (["--head", "crf", "--use_crf"], "crf"),
        (POINTER, "global_pointer"),
    ],
)
def test_the_heads(arguments, head):
    """However a head is named, it is the same run, also that of before there was `--head`."""
    config = cli.parse(NERConfig, [*REQUIRED, *arguments])
    assert (config.head_name, config.use_crf) == (head, head == "crf")
    described = plain_options(config)
    assert described["--use_crf"] == (head == "crf")
    assert described.get("--head") == ("global_pointer" if head == "global_pointer" else None)
    assert replace(config, saved_dir="other").head_name == head


@pytest.mark.parametrize(
    ("arguments", "rate", "is_given"),
    [
        (["--learning_rate", "1e-3"], 5e-5, False),
        (["--learning_rate", "1e-3", *POINTER], 1e-3, True),
        (["--learning_rate", "1e-3", *POINTER, "--crf_learning_rate", "5e-5"], 5e-5, True),
        (["--learning_rate", "1e-3", *POINTER, "--crf_learning_rate", "2e-3"], 2e-3, True),
        (["--crf_learning_rate", "5e-5"], 5e-5, True),
    ],
)
def test_the_rate_of_the_head(arguments, rate, is_given):
    """A global pointer has that of the encoder, unless one is given, be it the default of a CRF."""
    config = cli.parse(NERConfig, [*REQUIRED, *arguments])
    assert (config.crf_learning_rate, config.gives_head_rate) == (rate, is_given)
    assert plain_options(config)["--crf_learning_rate"] == rate
    again = replace(config, saved_dir="other")
    assert (again.crf_learning_rate, again.gives_head_rate) == (rate, is_given)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--use_crf", "--head", "linear"], "--use_crf means --head crf, got --head linear; leave one of them out"),
        (["--use_crf", *POINTER], "--use_crf means --head crf, got --head global_pointer"),
        ([*POINTER, "--constrain_crf"], "--constrain_crf needs --use_crf"),
        (
            [*POINTER, "--folds", "2"],
            "--folds writes the probability of each tag of a word, which --head global_pointer",
        ),
        ([*POINTER, "--r_drop", "1"], "--r_drop compares the probabilities of the tags of a word, which --head"),
        ([*POINTER, "--head_size", "7"], "--head_size: expected an even number, as rotary positions turn pairs, got 7"),
        ([*POINTER, "--head_size", "1"], "--head_size: expected at least 2, got 1"),
        (["--head_size", "32"], "--head_size is for --head global_pointer, got linear; leave it out"),
        (["--use_crf", "--decoding", "flat"], "--decoding is for --head global_pointer, got crf; leave it out"),
        (["--head", "biaffine"], "--head: invalid choice: 'biaffine'"),
    ],
)
def test_heads_that_make_no_sense(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.parse(NERConfig, [*REQUIRED, *arguments])
    assert exit_.value.code == 2
    assert message in re.sub(r"\s+", " ", capsys.readouterr().err)


def test_the_heads_are_those_of_the_task():
    assert list(ENTITY_HEADS) == list(HEADS)


def test_a_constrained_crf_needs_a_crf(capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.parse(NERConfig, [*REQUIRED, "--constrain_crf"])
    assert exit_.value.code == 2
    assert "--constrain_crf needs --use_crf" in capsys.readouterr().err


def test_inference_needs_the_names_of_its_labels(capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.parse(SentenceBertConfig, [*REQUIRED[:2], "--is_nli"])
    assert exit_.value.code == 2
    assert "--is_nli needs --label_file" in capsys.readouterr().err


@pytest.mark.parametrize("spelling", ["--local_rank=3", "--local-rank=3"])
def test_both_spellings_of_the_local_rank(spelling):
    assert cli.parse(ClassifierConfig, [*REQUIRED, spelling]).local_rank == 3


def test_the_command_to_go_on_with_overwrites_nothing(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["run_classifier.py", "--overwrite", "--saved_dir", "a b", "--max_steps", "9"])
    monkeypatch.setattr(cli.program, "command", lambda: ["python", "run_classifier.py"])
    config = SimpleNamespace(resume=False)
    told = cli._how_to_resume(InterruptedRunError("stopped after step 5", goes_on=True), config)
    command = "python run_classifier.py --saved_dir 'a b' --max_steps 9 --resume"
    assert told == f"stopped after step 5; go on with: {command}"
    told = cli._how_to_resume(InterruptedRunError("stopped after step 5", goes_on=False), config)
    assert told == "stopped after step 5; --keep_checkpoints 0 left no checkpoint to continue from"


@pytest.mark.parametrize(
    "scheduler", ["linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup"]
)
def test_the_six_schedulers(scheduler):
    assert cli.parse(ClassifierConfig, [*REQUIRED, "--scheduler", scheduler]).scheduler == scheduler


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: --train_data_file"),
        ([*REQUIRED, "--batch_size", "0"], "--batch_size: expected at least 1, got 0"),
        ([*REQUIRED, "--batch_size", "two"], "--batch_size: invalid int value: 'two'"),
        (REQUIRED[:2], "--problem_type single_label needs --label_file with its labels, one a line"),
        ([*REQUIRED, "--problem_type", "score"], "--problem_type score has no labels; leave out --label_file"),
        ([*REQUIRED, "--problem_type", "ranking"], "--problem_type ranking has no labels; leave out --label_file"),
        (
            [*REQUIRED[:2], "--problem_type", "ranking", "--dev_ratio", "0.1"],
            "which have another form than dev lines with --problem_type ranking; name a file of",
        ),
        ([*REQUIRED, "--warmup_proportion", "1.5"], "--warmup_proportion: expected at most 1.0, got 1.5"),
        ([*REQUIRED, "--learning_rate", "nan"], "--learning_rate: expected a finite number, got nan"),
        ([*REQUIRED, "--learning_rate", "inf"], "--learning_rate: expected a finite number, got inf"),
        ([*REQUIRED, "--weight_decay", "1e999"], "--weight_decay: expected a finite number, got 1e999"),
        ([*REQUIRED, "--seed", str(2**64)], f"--seed: expected at most {2**63 - 1}, got {2**64}"),
        ([*REQUIRED, "--epochs", str(2**63)], f"--epochs: expected at most {2**63 - 1}, got {2**63}"),
        ([*REQUIRED, "--local_rank", "first"], "--local_rank/--local-rank: invalid int value: 'first'"),
        ([*REQUIRED, "--scheduler", "step"], "--scheduler: invalid choice: 'step'"),
        ([*REQUIRED, "--save_best"], "unrecognized arguments: --save_best"),
        ([*REQUIRED, "--resume", "--overwrite"], "--overwrite replaces; choose one of them"),
        ([*REQUIRED, "--save_best_model"], "--save_best_model compares dev metrics and needs --dev_data_file"),
        ([*REQUIRED, "--patience", "2"], "--patience counts evaluations and needs --dev_data_file or --dev_ratio"),
        ([*REQUIRED, "--eval_steps", "2"], "--eval_steps is for evaluations and needs --dev_data_file or --dev_ratio"),
        ([*REQUIRED, "--saved_dir", ""], "--saved_dir: expected a value, got an empty text"),
        ([*REQUIRED, "--new_head"], "--new_head leaves out the head of --init_from_ckpt, got no --init_from_ckpt"),
        ([*REQUIRED, "--label_smoothing", "1"], "--label_smoothing: expected at most 0.99, got 1"),
        ([*REQUIRED, "--focal_gamma", "-1"], "--focal_gamma: expected at least 0.0, got -1"),
        ([*REQUIRED, "--logit_adjustment", "-1"], "--logit_adjustment: expected at least 0.0, got -1"),
        (
            [*REQUIRED, "--class_weights", "balanced", "--logit_adjustment", "1"],
            "--class_weights and --logit_adjustment: both make up for unequal classes, and would do it twice",
        ),
        ([*REQUIRED, "--patience", "0"], "--patience: expected at least 1, got 0"),
        ([*REQUIRED, "--r_drop", "-1"], "--r_drop: expected at least 0.0, got -1"),
        ([*REQUIRED, "--layer_decay", "0"], "--layer_decay: expected more than 0, such as 0.9, got 0"),
        ([*REQUIRED, "--layer_decay", "1.1"], "--layer_decay: expected at most 1.0, got 1.1"),
        ([*REQUIRED, "--freeze_layers", "-1"], "--freeze_layers: expected at least 0, got -1"),
        ([*REQUIRED, "--max_steps", "0"], "--max_steps: expected at least 1, got 0"),
        ([*REQUIRED, "--saved_dir", "a\udcff"], "--saved_dir: expected a name in UTF-8, which tokenizers need, got"),
        ([*REQUIRED, "--adversarial_epsilon", "0"], "--adversarial_epsilon: expected a length above 0, such as 1.0"),
        ([*REQUIRED, "--adversarial_epsilon", "nan"], "--adversarial_epsilon: expected a finite number, got nan"),
        (
            [*REQUIRED, "--adversarial_epsilon", "1", "--freeze_layers", "0"],
            "--adversarial_epsilon moves word embeddings along their gradient, and --freeze_layers freezes them",
        ),
        (
            [*REQUIRED, "--layers_from", "0,1", "--init_from_ckpt", "w.bin"],
            "--layers_from takes layers of --pretrained_model_name_or_path, which --init_from_ckpt would replace",
        ),
        *(
            (
                [*REQUIRED, "--layers_from", layers.strip("'")],
                f"--layers_from: expected numbers {expected}, got {layers}",
            )
            for expected, layers in (
                *(("of layers that rise from 0 on", layers) for layers in ("2,1", "1,1", "-1")),
                *(("with commas between them, such as 0,2,4", f"'{layers}'") for layers in ("0;2", "0,", "first")),
            )
        ),
        (
            [*REQUIRED, "--teacher", "t.npy", "--on_bad_line", "skip"],
            "--teacher has a row for each line, and --on_bad_line skip leaves lines out; fix the lines",
        ),
        ([*REQUIRED, "--teacher_weight", "0.7"], "--teacher_weight is for --teacher, got no --teacher"),
        ([*REQUIRED, "--teacher_temperature", "4"], "--teacher_temperature is for --teacher, got no --teacher"),
        ([*REQUIRED, "--teacher", "t", "--teacher_weight", "1.5"], "--teacher_weight: expected at most 1.0, got 1.5"),
        (
            [*REQUIRED, "--teacher", "t", "--teacher_temperature", "0"],
            "--teacher_temperature: expected more than 0, got 0",
        ),
        (
            [*MULTI_LABEL, "--teacher", "t.npy"],
            "--teacher is compared in what it says of classes that exclude each other, which --problem_type multi",
        ),
        ([*REQUIRED, "--ema_decay", "1"], "--ema_decay: expected a decay between 0 and 1, such as 0.999, got 1"),
        ([*REQUIRED, "--ema_decay", "0"], "--ema_decay: expected a decay between 0 and 1, such as 0.999, got 0"),
        ([*REQUIRED, "--folds", "1"], "--folds: expected at least 2, got 1"),
        ([*REQUIRED, "--folds", "2", "--dev_data_file", "d"], "--folds and --dev_data_file: each model of --folds is"),
        ([*REQUIRED, "--folds", "2", "--dev_ratio", "0.1"], "--folds and --dev_ratio: each model of --folds is"),
        (
            [*REQUIRED, "--folds", "2", "--problem_type", "multi_label"],
            "--folds writes probabilities of classes that exclude each other, which --problem_type multi_label does",
        ),
        (
            [*REQUIRED[:2], "--folds", "2", "--problem_type", "score"],
            "--folds writes probabilities of classes that exclude each other, which --problem_type score does not have",
        ),
        ([*REQUIRED, "--dev_ratio", "1"], "--dev_ratio: expected a share between 0 and 1, such as 0.1, got 1"),
        ([*REQUIRED, "--dev_ratio", "nan"], "--dev_ratio: expected a finite number, got nan"),
        ([*REQUIRED, "--dev_ratio", "0.1", "--dev_data_file", "d"], "--dev_ratio and --dev_data_file both name"),
        ([*REQUIRED, "--multi_label_loss", "zlpr"], "--multi_label_loss is for --problem_type multi_label, got single"),
        (
            [*REQUIRED, "--label_separator", "|"],
            "--label_separator is for --problem_type multi_label, got single_label",
        ),
        ([*MULTI_LABEL, "--multi_label_loss", "hinge"], "--multi_label_loss: invalid choice: 'hinge'"),
        ([*MULTI_LABEL, "--label_separator", "\t"], "--label_separator: expected printable characters, got '\\t'"),
        (
            [*REQUIRED[:2], *MULTI_LABEL[-2:]],
            "--problem_type multi_label needs --label_file with its labels, one a line",
        ),
    ],
)
def test_mistakes_end_with_exit_code_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.parse(ClassifierConfig, arguments)
    assert exit_.value.code == 2
    assert message in re.sub(r"\s+", " ", capsys.readouterr().err)


@pytest.mark.parametrize("script", [ClassifierConfig, SentenceBertConfig, NERConfig])
def test_a_share_of_the_training_examples_is_enough_to_evaluate(script):
    config = cli.parse(script, [*required(script), "--dev_ratio", "0.1", "--patience", "2", "--eval_steps", "5"])
    assert (config.dev_ratio, config.has_dev_examples, config.evaluation_steps) == (0.1, True, 5)


@pytest.mark.parametrize("script", [ClassifierConfig, SentenceBertConfig, NERConfig])
def test_folds_are_enough_to_evaluate(script):
    config = cli.parse(script, [*required(script), "--folds", "5", "--patience", "2", "--save_best_model"])
    assert (config.folds, config.has_dev_examples) == (5, True)


def test_constrained_folds_need_all_sentences(capsys):
    with pytest.raises(SystemExit):
        cli.parse(NERConfig, [*REQUIRED, "--folds", "2", "--use_crf", "--constrain_crf", "--on_bad_line", "skip"])
    assert "--folds, --constrain_crf and --on_bad_line skip" in capsys.readouterr().err


def test_a_ranking_is_of_pairs_whether_it_says_so_or_not():
    for extra in ([], ["--is_text_pair"]):
        config = cli.parse(ClassifierConfig, [*REQUIRED[:2], "--problem_type", "ranking", *extra])
        assert (config.num_texts, config.has_labels) == (2, False)


@pytest.mark.parametrize("script", [SimCSEConfig, BatchNegConfig])
def test_training_examples_without_a_score_do_not_evaluate(script, capsys):
    with pytest.raises(SystemExit):
        cli.parse(script, [*REQUIRED[:2], "--dev_ratio", "0.1"])
    assert "--dev_ratio splits training examples, which have no score to evaluate on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mix", "equal"], "--mix equal is for several files, got no --more_train_data_files"),
        (["--more_train_data_files", "a", "b", "a"], "expected each training file once, got a again"),
        (["--more_train_data_files", "train.txt"], "expected each training file once, got train.txt again"),
        (
            ["--more_train_data_files", "a", "--dev_ratio", "0.1"],
            "--dev_ratio draws dev examples from one file, got --more_train_data_files",
        ),
        (
            ["--more_train_data_files", "a", "--teacher", "t.npy"],
            "--teacher has the rows of one file, --train_data_file, got --more_train_data_files too",
        ),
        (
            ["--more_train_data_files", "a", "--folds", "2"],
            "--folds splits the examples of one file, got --more_train_data_files",
        ),
    ],
)
def test_mistakes_in_several_files(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.parse(SentenceBertConfig, [*REQUIRED[:2], *arguments])
    assert exit_.value.code == 2
    assert message in re.sub(r"\s+", " ", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("script", "option_name"),
    [(SimCSEConfig, "query_prompt"), (SentenceBertConfig, "passage_prompt"), (NERConfig, "more_train_data_files")],
)
def test_what_a_script_does_not_have(script, option_name, capsys):
    """Both sides of simcse and sentencebert are alike; no batch of a tagger has negatives."""
    with pytest.raises(SystemExit):
        cli.parse(script, [*required(script), f"--{option_name}", "a"])
    assert f"unrecognized arguments: --{option_name}" in capsys.readouterr().err


def help_of(script, capsys) -> str:
    with pytest.raises(SystemExit):
        cli.parse(script, ["--help"], description="What it does.\n\n    an example")
    return capsys.readouterr().out


def test_help_shows_options_defaults_and_the_docstring(capsys):
    text = help_of(ClassifierConfig, capsys)
    assert "What it does.\n\n    an example" in text
    assert all(f"--{name}" in text for name in SHARED | OWN[ClassifierConfig])
    assert "(default: 5e-05)" in text
    assert re.search(r"usage: .* --train_data_file TRAIN_DATA_FILE \[options\]\n", text)


PUBLISHED = set(list(SHARED)[:18])
PUBLISHED_OWN = {
    ClassifierConfig: {"label_file", "is_text_pair", "problem_type", "multi_label_loss", "label_separator"},
    SentenceBertConfig: set(OWN[SentenceBertConfig]) - {"folds", "matryoshka", *FILES, *TEACHER},
    SimCSEConfig: {"margin", "scale", "dropout", "pooling_mode", "output_emb_size"},
    BatchNegConfig: {"margin", "scale", "pooling_mode", "output_emb_size", "mean_loss", "loss", "score_range"},
    NERConfig: {"label_file", "tag", "head", "use_crf", "crf_learning_rate", "head_size", "decoding"},
}


@SCRIPTS
def test_help_shows_the_published_options_first(script, capsys):
    headings = ["options", "data", "optimisation", "evaluation and saving", "speed"]
    _, *parts = re.split(rf"^({'|'.join(headings)}):\n", help_of(script, capsys), flags=re.MULTILINE)
    assert parts[::2] == headings
    assert set(re.findall(r"^  --(\w+)", parts[1], re.MULTILINE)) == PUBLISHED | PUBLISHED_OWN[script]
    assert parts[1].rindex("--") == parts[1].index("--local-rank")


@dataclass(frozen=True, kw_only=True)
class Draw:
    """Draw."""

    runs: tuple[str, ...] = option(positional=True, metavar="RUN", help="runs")
    sizes: tuple[int, ...] = option((), minimum=1, metavar="SIZE", help="several")
    from_: int | None = option(None, choices=(1, 2), help="a keyword of Python")

    def __post_init__(self) -> None:
        if self.from_ == 2:
            raise UserError("--from 2: no")


@dataclass(frozen=True, kw_only=True)
class Show:
    """Show."""


def test_positional_and_repeated_options():
    assert cli.parse(Draw, ["a", "b", "--from", "1"]) == Draw(runs=("a", "b"), from_=1)
    assert cli.parse(Draw, ["a", "--sizes", "1", "2", "--sizes", "3"]) == Draw(runs=("a",), sizes=(1, 2, 3))


def test_evaluate_takes_the_name_of_the_other_commands_and_its_older_one():
    required = ["--model_dir", "m", "--output_dir", "o"]
    newer, older = (cli.parse(EvaluateConfig, [*required, name, "file"]) for name in ("--input_file", "--data_file"))
    assert newer == older


def test_a_value_of_two_hyphens_is_one(capsys):
    config = cli.parse(ClassifierConfig, [*MULTI_LABEL, "--label_separator=--", "--saved_dir=--"])
    assert (config.label_separator, config.saved_dir) == ("--", "--")
    for name, message in (("epochs", "invalid int value: '--'"), ("multi_label_loss", "invalid choice: '--'")):
        with pytest.raises(SystemExit):
            cli.parse(ClassifierConfig, [*MULTI_LABEL, f"--{name}=--"])
        assert message in capsys.readouterr().err


def test_no_option_takes_an_empty_text(capsys):
    """`--saved_dir ""` would be the current folder."""
    for option_name in ("--saved_dir", "--train_data_file", "--epochs"):
        with pytest.raises(SystemExit) as exit_:
            cli.parse(ClassifierConfig, ["--train_data_file", "t", "--label_file", "l", option_name, ""])
        assert exit_.value.code == 2
        assert f"argument {option_name}: expected a value, got an empty text" in capsys.readouterr().err


def test_commands(capsys):
    commands = {"draw": Draw, "show": Show}
    assert cli.parse_command(commands, ["draw", "a"]) == Draw(runs=("a",))
    assert cli.parse_command(commands, ["show"]) == Show()
    for arguments, message in {
        (): "required: COMMAND",
        ("paint",): "invalid choice: 'paint'",
        ("show", "a"): "unrecognized arguments: a",
        ("draw",): "required: RUN",
        ("draw", "a", "--sizes", "0"): "expected at least 1, got 0",
        ("draw", "a", "--from", "2"): "draw: error: --from 2: no",
    }.items():
        with pytest.raises(SystemExit) as exit_:
            cli.parse_command(commands, arguments)
        assert exit_.value.code == 2
        assert message in capsys.readouterr().err
