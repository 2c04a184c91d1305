"""Command lines of wrong use, drawn by a seed: a line that works, with one mistake in it."""

import json
import os
import random
import shutil
import socket
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

from bertorch.cli import spellings
from bertorch.compare import CompareConfig
from bertorch.config import BatchNegConfig, ClassifierConfig, NERConfig
from bertorch.encode import EncodeConfig
from bertorch.evaluate import EvaluateConfig
from bertorch.export import ExportConfig
from bertorch.label_issues import LabelIssuesConfig
from bertorch.mine import MineConfig
from bertorch.plot import PlotConfig
from bertorch.predict import PredictConfig
from bertorch.prepare.commands import COMMANDS
from run_sentencebert import SentenceBertConfig
from run_simcse import SimCSEConfig
from tests.conftest import ANNOTATIONS, MATCHING, NER, NLI, PARAPHRASES, RETRIEVAL, REVIEWS, SENTENCES, STS, TINY
from tests.folders_of_evaluations import classified, write_evaluation
from tests.teachers import random_rows, vector_teacher

# What is not drawn, by option ("*" for any) and kind, since it is no mistake: predict reads streams.
LEFT_OUT = {("input_file of predict", "pipe"), ("input_file of predict", "device")}
LINES = 40  # of each sample

TRAINING = {"pretrained_model_name_or_path": "model", "saved_dir": "saved", "max_steps": 1, "max_seq_length": 32}


@dataclass(frozen=True)
class Program:
    """A script or command, and options with which it works; names in `files` and `outputs` are of the world."""

    command: tuple[str, ...]
    config: type
    options: dict[str, Any]
    contradictions: tuple[tuple[str, ...], ...] = ()
    folders: dict[str, str] = field(default_factory=dict)  # option → the run of `tests.folders` that it names

    @property
    def name(self) -> str:
        return self.command[-1]


def _script(name: str, config: type, *contradictions: tuple[str, ...], **options: Any) -> Program:
    shared = (("--resume", "--overwrite"), ("--new_head",), ("--patience", "1", "--dev_ratio", "0.5"))
    return Program((f"run_{name}.py",), config, TRAINING | options, shared + contradictions)


def _inference(name: str, config: type, model: str, *contradictions: tuple[str, ...], **options: Any) -> Program:
    return Program(("-m", f"bertorch.{name}"), config, options, contradictions, {"model_dir": model})


def _prepare(name: str, **options: Any) -> Program:
    return Program(("-m", "bertorch.prepare", name), COMMANDS[name], options)


REVIEW_FILES = {"train_data_file": "reviews.txt", "dev_data_file": "reviews.dev.txt", "label_file": "reviews.labels"}
PROGRAMS = [
    _script(
        *("classifier", ClassifierConfig, ("--is_text_pair",), ("--multi_label_loss", "zlpr")),
        *(("--problem_type", "score"), ("--problem_type", "ranking"), ("--class_weights", "balance")),
        *(("--label_smoothing", "0.1", "--focal_gamma", "2"), ("--class_weights", "reviews.txt")),
        *(("--problem_type", "ranking", "--dev_ratio", "0.1"), ("--freeze_layers", "99"), ("--layers_from", "0,99")),
        *(("--teacher", "vectors.npy"), ("--teacher", "reviews.txt"), ("--teacher_weight", "0.1"), ("--folds", "2")),
        **REVIEW_FILES,
    ),
    _script(
        *("sentencebert", SentenceBertConfig, ("--is_nli",), ("--label_file", "reviews.labels")),
        ("--matryoshka", "4096"),
        train_data_file="matching.txt", dev_data_file="matching.txt",
    ),
    _script(
        *("simcse", SimCSEConfig, ("--dev_data_file", "sentences.txt"), ("--r_drop", "1")),
        *(("--matryoshka", "64;32"), ("--matryoshka", "64,64"), ("--teacher", "vectors.npy")),
        train_data_file="sentences.txt", dev_data_file="sts.txt",
    ),
    _script(
        *("batchneg", BatchNegConfig, ("--dev_ratio", "0.1"), ("--train_data_file", "sentences.txt")),
        *(("--loss", "cosent"), ("--score_range", "0,5"), ("--loss", "cosine_mse", "--train_data_file", "sts.txt")),
        *(("--mix", "equal"), ("--more_train_data_files", "paraphrases.txt"), ("--query_prompt", "长" * 40)),
        train_data_file="paraphrases.txt", dev_data_file="sts.txt",
    ),
    _script(
        *("ner", NERConfig, ("--constrain_crf",), ("--tag", "bio"), ("--head", "linear", "--use_crf")),
        *(("--head_size", "32"), ("--decoding", "flat"), ("--head", "global_pointer", "--r_drop", "1")),
        *(("--head", "global_pointer", "--folds", "2", "--dev_ratio", "0.5"), ("--label_file", "reviews.labels")),
        train_data_file="ner.json", dev_data_file="ner.json", label_file="ner.labels",
    ),
    _inference(
        *("predict", PredictConfig, "classifier", ("--ranked",), ("--ranked", "--flush"), ("--output_file", "out.npy")),
        input_file="sentences.txt", output_file="out.tsv",
    ),
    _inference(
        *("evaluate", EvaluateConfig, "classifier", ("--tune_thresholds", "macro"), ("--input_file", "corpus.jsonl")),
        ("--calibrate", "--tune_thresholds", "micro"),
        input_file="reviews.txt", output_dir="report",
    ),
    _inference(
        *("evaluate", EvaluateConfig, "simcse", ("--input_file", "sts.txt"), ("--plot",)),
        corpus_file="corpus.jsonl", queries_file="queries.jsonl", qrels_file="qrels.tsv", output_dir="report",
    ),
    _inference(
        *("encode", EncodeConfig, "simcse", ("--nearest", "2"), ("--output_file", "out.txt"), ("--input_file", "-")),
        ("--dimensions", "4096"),
        input_file="sentences.txt", output_file="out.npy",
    ),
    _inference(
        *("mine", MineConfig, "simcse", ("--rank_from", "200"), ("--num_negatives", "101")),
        *(("--input_file", "sts.txt"), ("--reranker_dir", "model"), ("--output_file", "-")),
        input_file="paraphrases.txt", output_file="out.tsv",
    ),
    Program(
        *(("-m", "bertorch.export"), ExportConfig, {"format": "safetensors", "output_dir": "exported"}),
        *(
            (("--max_loss", "0.1"), ("--check_file", "reviews.txt"), ("--format", "onnx", "--max_loss", "0.5")),
            {"model_dir": "classifier"},
        ),
    ),
    Program(("-m", "bertorch.plot"), PlotConfig, {"output": "plot.png"}, (), {"runs": "classifier"}),
    Program(
        *(("-m", "bertorch.compare"), CompareConfig, {"folders": ("report-a", "report-b"), "output_file": "out.json"}),
        (("--measure", "f1"),),
    ),
    Program(
        ("-m", "bertorch.label_issues"), LabelIssuesConfig, {"input_file": "out_of_fold.tsv", "output_file": "out.tsv"}
    ),
    _prepare("clue", task="tnews", input_file="tnews.json", output_file="out.tsv"),
    _prepare("columns", input_file="bmes.txt", output_file="out.json"),
    _prepare("tags", input_file="ner.json", output_file="out.json"),
    _prepare("csv", input_file="table.csv", output_file="out.tsv", columns="text,label"),
    _prepare("doccano", input_file="doccano.jsonl", output_file="out.json", label_file="out.labels"),
    _prepare("label_studio", input_file="tasks.json", output_file="out.json"),
    Program(
        *(("-m", "bertorch.prepare", "brat"), COMMANDS["brat"], {"input_dir": "documents", "output_file": "out.json"}),
        (("--reverse",), ("--output_dir", "parts"), ("--input_file", "ner.json")),
    ),
    _prepare("labels", input_file="reviews.txt", output_file="out.labels"),
    _prepare("split", input_file="reviews.txt", output_dir="parts"),
    _prepare("dedupe", train_file="reviews.txt", dev_file="reviews.dev.txt", report_file="out.json"),
]  # fmt: skip
FILES = {
    "train_data_file",
    "more_train_data_files",
    "dev_data_file",
    "input_file",
    "corpus_file",
    "queries_file",
    "qrels_file",
    "train_file",
    "dev_file",
    "teacher",
}
OUTPUTS = {"saved_dir", "cache_dir", "tensorboard_dir", "output_file", "output_dir", "report_file", "output"}
MODELS = {"model_dir", "reranker_dir", "pretrained_model_name_or_path", "init_from_ckpt"}


def build_world(folder: Path) -> None:
    """The files of the lines that work."""
    samples = {
        "reviews.txt": REVIEWS / "train.txt",
        "reviews.dev.txt": REVIEWS / "dev.txt",
        "reviews.labels": REVIEWS / "labels.txt",
        "matching.txt": MATCHING / "train.txt",
        "nli.txt": NLI / "train.txt",
        "sentences.txt": SENTENCES,
        "paraphrases.txt": PARAPHRASES,
        "sts.txt": STS,
        "ner.json": NER / "train.json",
        "ner.labels": NER / "labels.txt",
        **{name: RETRIEVAL / name for name in ("corpus.jsonl", "queries.jsonl", "qrels.tsv")},
    }
    for name, sample in samples.items():
        (folder / name).write_text("".join(sample.read_text().splitlines(keepends=True)[:LINES]))
    tnews = {"label": "102", "label_desc": "news_entertainment", "sentence": "好", "keywords": ""}
    (folder / "tnews.json").write_text(json.dumps(tnews) + "\n")
    (folder / "bmes.txt").write_text("我 S-PER\n在 O\n北 B-LOC\n京 E-LOC\n\n好 O\n")
    (folder / "table.csv").write_text("text,label\n好,1\n坏,0\n")
    vector_teacher(folder / "vectors.npy", random_rows(3, 8))
    (folder / "model").symlink_to(TINY)
    shutil.copy(ANNOTATIONS / "doccano.jsonl", folder / "doccano.jsonl")
    shutil.copy(ANNOTATIONS / "label_studio.json", folder / "tasks.json")
    shutil.copytree(ANNOTATIONS / "brat", folder / "documents")
    for seed, name in enumerate(("report-a", "report-b")):
        write_evaluation(folder / name, classified(0.8, seed=seed, count=LINES))
    (folder / "out_of_fold.tsv").write_text("number\tlabel\tfold\tp:a\tp:b\ttext\n1\ta\t1\t0.2\t0.8\t好\n")


def line_of(program: Program, options: dict[str, Any], extra: tuple[str, ...] = ()) -> list[str]:
    """The command with its options; None is one without its value."""
    declared = {each.name: each for each in fields(program.config)}
    positional = []
    for name, value in options.items():
        if declared[name].metadata["positional"]:
            positional += value if isinstance(value, tuple) else [str(value)]
    named: list[str] = []
    for name, value in options.items():
        if not declared[name].metadata["positional"]:
            named += [spellings(declared[name])[0], *([] if value is None else [str(value)])]
    return [*program.command, *positional, *named, *extra]


# Mistakes in files


def _socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # the path of a socket is at most some hundred bytes
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)
    os.chdir(here)


BAD_FILES: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: None,
    "folder": Path.mkdir,
    "empty": Path.touch,
    "blank": lambda path: path.write_text("\n \n\n"),
    "random bytes": lambda path: path.write_bytes(random.Random(1).randbytes(3000)),
    "utf-16": lambda path: path.write_text("好\t正\n" * 9, encoding="utf-16"),
    "pipe": os.mkfifo,
    "device": lambda path: path.symlink_to(os.devnull),
    "endless": lambda path: path.symlink_to("/dev/zero"),
    "socket": _socket,
    "dangling": lambda path: path.symlink_to("nowhere"),
    "loop": lambda path: path.symlink_to(path.name),
    "long line": lambda path: path.write_bytes(b"a" * 5_000_000),
}
BAD_LABELS = {"one label": "a\n", "twice": "a\nb\na\n", "control characters": "a\x01\nb\n"}
BAD_COLUMNS = {"one column": "字\n" * 9, "six columns": "a\tb\tc\td\te\tf\n" * 9, "half JSON": '{"text": ["a"\n'}
# Names, whatever is there.
BAD_NAMES = {"below a file": "reviews.txt/x", "long name": "x" * 5000, "no name": ""}
BAD_OUTPUTS = BAD_NAMES | {"no room": "/proc/nothing/x"}
BAD_METRICS = {"no JSON": "nothing\n", "an array": "[1]\n", "text": '{"step": "one"}\n', "no step": "{}\n"}


def _json(name: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        config = json.loads((folder / name).read_text())
        change(config)
        (folder / name).write_text(json.dumps(config))

    return damage


def _cut(folder: Path) -> None:
    for path in (*folder.glob("*.bin"), *folder.glob("*.safetensors")):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _remove(*patterns: str) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        for path in [path for pattern in patterns for path in folder.glob(pattern)]:
            path.unlink()

    return damage


# What is wrong with a copy of a model's folder: first what also concerns --init_from_ckpt.
BAD_WEIGHTS: dict[str, Callable[[Path], object]] = {
    "no weights": _remove("*.bin", "*.safetensors"),
    "half the weights": _cut,
    "other weights": lambda folder: [path.write_bytes(b"PK\x03\x04") for path in folder.glob("*.bin")] or _cut(folder),
}
BAD_MODELS = BAD_WEIGHTS | {
    "no tokenizer": _remove("tokenizer*", "vocab.txt"),
    "no config": _remove("config*.json"),
    "empty config": lambda folder: (folder / "config.json").write_text(""),
    "config of an array": lambda folder: (folder / "config.json").write_text("[]"),
    "config of null": lambda folder: (folder / "config.json").write_text("null"),
    "unknown architecture": _json("config.json", lambda config: config.update(model_type="unheard")),
    "another width": _json("config.json", lambda config: config.update(hidden_size=96)),
    "text for a width": _json("config.json", lambda config: config.update(hidden_size="wide")),
    "config of bytes": lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe{}"),
    "tokenizer of null": lambda folder: [path.write_text("null") for path in folder.glob("tokenizer*.json")],
}


# Mistakes in values


EXTREME = {"seed": ["18446744073709551616"], "dropout": ["1"], "max_seq_length": ["9" * 25]}


def _bad_values(declared: Any, hint: Any) -> list[str]:
    kind, *_ = typing.get_args(hint) or [hint]
    lowest, highest, choices = (declared.metadata[name] for name in ("minimum", "maximum", "choices"))
    if choices is not None:
        return ["", "other", str(choices[0]).upper() + "?"]
    if kind not in (int, float):
        return []
    values = ["", "two", "1,5", "--", "0x10", *(["1.5", "1e3", "9" * 5000] if kind is int else ["inf"]), "nan"]
    values += [] if lowest is None else [str(lowest - 1), "-99"]
    return [*values, *([] if highest is None else [str(highest + 1)]), *EXTREME.get(declared.name, [])]


Mistake = tuple[str, Callable[[], list[str]]]  # what is wrong, and what makes the files and the line


class Mistakes:
    """All mistakes in a program's line, whose files are in `folder`."""

    def __init__(self, program: Program, folder: Path) -> None:
        self._program, self._options, self._folder = program, program.options, folder
        self._hints = typing.get_type_hints(program.config)

    def __iter__(self) -> Iterator[Mistake]:
        for declared in fields(self._program.config):
            if declared.name != "local_rank":  # any is fine
                yield from self._in_syntax(declared)
                yield from self._in_files(declared)
        yield "line unknown option", lambda: self._line("--no_such_option", "1")
        yield "line shortened option", lambda: self._line("--over")
        yield "line a word too many", lambda: self._line("--overwrite", "word")
        for extra in self._program.contradictions:
            without = [option.removeprefix("--") for option in extra]
            yield f"contradiction {extra}", lambda extra=extra, without=without: self._line(*extra, without=without)

    def _line(self, *extra: str, without: Sequence[str] = (), **changed: Any) -> list[str]:
        options = {name: value for name, value in self._options.items() if name not in without}
        return line_of(self._program, options | changed, extra)

    def _changed(self, name: str, kind: str, value: Any, make: Callable[[], object] = lambda: None) -> Mistake:
        def build() -> list[str]:
            make()
            return self._line(**{name: value})

        return f"{name} {kind}", build

    def _in_syntax(self, declared: Any) -> Iterator[Mistake]:
        name, hint = declared.name, self._hints[declared.name]
        if declared.default is MISSING and name in self._options:
            yield f"{name} left out", lambda: self._line(without=[name])
        if hint is bool:
            yield f"{name} with a value", lambda: self._line(f"--{name}=yes")
        elif not declared.metadata["positional"]:
            yield self._changed(name, "without a value", None)
        for value in _bad_values(declared, hint):
            yield self._changed(name, repr(value[:30]), value)

    def _in_files(self, declared: Any) -> Iterator[Mistake]:
        name, bad = declared.name, self._folder / "bad"
        is_label_file = name == "label_file" and declared.metadata["is_input"]
        kinds: dict[str, Callable[[Path], object]] = {}
        texts: dict[str, str] = {}
        names: dict[str, str] = {}
        if name in FILES or is_label_file:
            kinds, names = BAD_FILES, BAD_NAMES
        if is_label_file:
            texts = BAD_LABELS
        elif name in ("train_data_file", "dev_data_file") and "label_file" in self._options:
            texts = BAD_COLUMNS
        elif name == "runs":
            texts = BAD_METRICS
        elif name in ("folders", "input_dir"):
            bad_folders = ("missing", "empty", "folder", "random bytes", "dangling", "loop", "socket")
            kinds = {kind: BAD_FILES[kind] for kind in bad_folders}
        elif name in OUTPUTS:
            names = BAD_OUTPUTS
        elif name in MODELS:
            kinds = {kind: BAD_FILES[kind] for kind in ("missing", "empty", "folder", "random bytes", "dangling")}
            source = Path(self._options["model_dir"] if name == "model_dir" else TINY)
            for kind, damage in (BAD_WEIGHTS if name == "init_from_ckpt" else BAD_MODELS).items():
                yield self._changed(name, kind, "damaged", partial(self._damaged, source, damage))
        for kind, make in kinds.items():
            yield self._changed(name, kind, ("report-a", "./bad") if name == "folders" else "./bad", partial(make, bad))
        for kind, text in texts.items():
            yield self._changed(name, kind, "bad", partial(bad.write_text, text))
        for kind, wrong in names.items():
            yield self._changed(name, kind, wrong)

    def _damaged(self, source: Path, damage: Callable[[Path], object]) -> None:
        shutil.copytree(source, self._folder / "damaged")
        damage(self._folder / "damaged")


def is_drawn(program: Program, mistake: str) -> bool:
    """Whether a mistake is not among those left out."""
    option, _, kind = mistake.partition(" ")
    command = program.name.removeprefix("bertorch.")
    return not {(option, kind), (f"{option} of {command}", kind), ("*", kind)} & LEFT_OUT


def snapshot(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """What is in a folder: mode, time of change and content of each entry."""
    entries = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        entries[str(path.relative_to(folder))] = (status.st_mode, status.st_mtime_ns, content)
    return entries


def draw(seed: int, folder: Path, models: Callable[[str], Path]) -> tuple[str, list[str]]:
    """Build a world in a folder; returns what is wrong, and the command line. `models` gives the folders of runs."""
    build_world(folder)
    chance = random.Random(seed)
    program = with_models(PROGRAMS[seed % len(PROGRAMS)], models)
    drawn = [mistake for mistake in Mistakes(program, folder) if is_drawn(program, mistake[0])]
    by_option: dict[str, list[Mistake]] = {}
    for mistake in drawn:  # an option first, since some have many more mistakes than others
        by_option.setdefault(mistake[0].partition(" ")[0], []).append(mistake)
    name, build = chance.choice(by_option[chance.choice(sorted(by_option))])
    return f"{program.name}: {name}", build()


def with_models(program: Program, models: Callable[[str], Path]) -> Program:
    """The program with the folders that it needs."""
    found = {option: str(models(run)) for option, run in program.folders.items()}
    return Program(program.command, program.config, found | program.options, program.contradictions)
