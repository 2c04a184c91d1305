r"""What the problem types of `run_classifier.py` give on real data, against peers and against each other.

    pip install -e '.[benchmarks]'
    python -m benchmarks.problem_types --case multi_label --data_dir ner/msra --model bert-tiny-zh --work_dir work

| case | `--data_dir` | compared |
|---|---|---|
| multi_label | tagged sentences: which types of entities occur in one | both losses; transformers Trainer |
| score | STS-B | mean squared error; transformers Trainer |
| ranking | LCQMC: paraphrases against near misses | cross-entropy over groups; CrossEncoderTrainer |
| classes | TNEWS, thinned to 100 : 1 | none, balanced, effective, logit adjustment, focal loss, smoothing |
| windows | ChnSentiCorp, the dev texts that are cut | `--windows 1` and `--windows 4` |

All runs of a case have the same files, steps, batch size, learning rate and schedule; a figure is the mean over the
seeds, with its range. A run whose result lies in `--work_dir` is not repeated.
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy import stats

from benchmarks.end_to_end.peer_script import TIMES, columns
from benchmarks.measuring import positive, run_command
from benchmarks.problem_types import material


@dataclass(frozen=True)
class Case:
    """What is compared.

    Attributes:
        figures: of a report, by their names there.
        make: makes the files in a folder, from the options.
        ours: options of our command by the name of the run.
        peers: options of a peer's script by its module's name.
        shared: options of all of our runs.
        has_labels: whether there is a label file.
    """

    figures: tuple[str, ...]
    make: Callable[[argparse.Namespace, Path], None]
    ours: dict[str, tuple[str, ...]]
    peers: dict[str, tuple[str, ...]] = field(default_factory=dict)
    shared: tuple[str, ...] = ()
    has_labels: bool = True


CASES = {
    "multi_label": Case(
        ("micro_f1", "macro_f1"),
        lambda options, folder: material.entity_types(Path(options.data_dir), folder, most=options.examples),
        {loss: ("--multi_label_loss", loss) for loss in ("bce", "zlpr")},
        {"trainer": ("--problem_type", "multi_label_classification")},
        ("--problem_type", "multi_label"),
    ),
    "score": Case(
        ("spearman",),
        lambda options, folder: material.scored_pairs(Path(options.data_dir), folder),
        {"squared error": ()},
        {"trainer": ("--problem_type", "regression")},
        ("--problem_type", "score", "--is_text_pair"),
        has_labels=False,
    ),
    "ranking": Case(
        ("mrr@10", "ndcg@10"),
        lambda options, folder: material.near_misses(Path(options.data_dir), folder, groups=options.examples or 10**9),
        {"cross-entropy": ()},
        {"cross_encoder": ()},
        ("--problem_type", "ranking"),
        has_labels=False,
    ),
    "classes": Case(
        ("macro_f1", "accuracy"),
        lambda options, folder: material.thinned(
            Path(options.data_dir), folder, largest=options.examples or 1000, ratio=100.0
        ),
        {
            "none": (),
            "balanced": ("--class_weights", "balanced"),
            "effective": ("--class_weights", "effective"),
            "logit adjustment": ("--logit_adjustment", "1"),
            "focal": ("--focal_gamma", "2"),
            "smoothing": ("--label_smoothing", "0.1"),
        },
    ),
    "windows": Case(
        ("accuracy",),
        lambda options, folder: material.cut_texts(
            Path(options.data_dir), folder, model=options.model, length=options.max_seq_length
        ),
        {f"--windows {windows}": ("--windows", str(windows)) for windows in (1, 4)},
    ),
}


def main() -> None:
    """Run what is missing, print a table."""
    options = _parser().parse_args()
    comparison = Comparison(CASES[options.case], options)
    found = {name: [comparison.figures(name, seed) for seed in options.seeds] for name in comparison.runs}
    print(f"\n{options.case}: {options.data_dir}, {options.model}, seeds {options.seeds}, {options.epochs} epoch(s)")
    names = list(dict.fromkeys(name for results in found.values() for result in results for name in result))
    print(f"| run | {' | '.join(names)} |\n|{'---|' * (len(names) + 1)}")
    for name, results in found.items():
        print(f"| {name} | {' | '.join(_mean([each.get(figure) for each in results]) for figure in names)} |")
    if "accuracy" in comparison.case.figures:
        comparison.print_differences()


class Comparison:
    """The runs of a case on its files, which are made in the working folder if they are not there."""

    def __init__(self, case: Case, options: argparse.Namespace) -> None:
        self.case, self._options, self._work = case, options, Path(options.work_dir)
        self._data = self._work / "data"
        if not (self._data / "dev.txt").exists():
            case.make(options, self._data)
        self.runs = [name for name in [*case.ours, *case.peers] if name in (options.runs or [name])]

    def figures(self, name: str, seed: int) -> dict[str, float]:
        """Those of a run, which is done if its result is not there."""
        numbers = self._ours(name, seed) if name in self.case.ours else self._theirs(name, seed)
        return {figure: numbers[figure] for figure in self.case.figures if figure in numbers}

    def print_differences(self) -> None:
        """The accuracy of our runs less that of the first one: means over the seeds, with an interval over examples."""
        first, *others = [name for name in self.runs if name in self.case.ours]
        for other in others:
            more = self._right(other) - self._right(first)  # (N,)
            interval = stats.ttest_1samp(more, 0.0).confidence_interval()
            print(f"{other} - {first}: accuracy {more.mean():+.4f}, 95 % [{interval.low:+.4f}, {interval.high:+.4f}]")

    def _ours(self, name: str, seed: int) -> dict[str, float]:
        folder, options = self._folder(name, seed), self._options
        report = folder / "report" / "report.json"
        if not report.exists():
            arguments = [sys.executable, "run_classifier.py", *self._files("train_data_file", "dev_data_file")]
            arguments += ["--pretrained_model_name_or_path", options.model, "--saved_dir", str(folder / "model")]
            arguments += ["--epochs", str(options.epochs), "--batch_size", str(options.batch_size)]
            arguments += ["--max_seq_length", str(options.max_seq_length), "--seed", str(seed)]
            arguments += ["--learning_rate", str(options.learning_rate), "--save_steps", "1000000"]
            arguments += ["--keep_checkpoints", "0", "--overwrite", *self.case.shared, *self.case.ours[name]]
            run_command(arguments)
            evaluate = [sys.executable, "-m", "bertorch.evaluate", "--model_dir", str(folder / "model")]
            run_command([*evaluate, "--input_file", str(self._data / "dev.txt"), "--output_dir", str(report.parent)])
        numbers: dict[str, float] = json.loads(report.read_text())
        return numbers

    def _theirs(self, module: str, seed: int) -> dict[str, float]:
        folder, options = self._folder(module, seed), self._options
        if not (folder / TIMES).exists():
            arguments = [sys.executable, "-m", f"benchmarks.problem_types.{module}", "--model", options.model]
            arguments += [*self._files("train_file", "dev_file"), *self.case.peers[module]]
            arguments += ["--max_seq_length", str(options.max_seq_length), "--num_train_epochs", str(options.epochs)]
            arguments += ["--per_device_train_batch_size", str(options.batch_size), "--seed", str(seed)]
            arguments += ["--learning_rate", str(options.learning_rate)]
            run_command([*arguments, "--save_strategy", "no", "--eval_strategy", "epoch", "--output_dir", str(folder)])
        metrics = json.loads((folder / TIMES).read_text())["metrics"]
        return {name.removeprefix("eval_"): value for name, value in metrics.items()}

    def _files(self, train: str, dev: str) -> list[str]:
        found = [f"--{train}", str(self._data / "train.txt"), f"--{dev}", str(self._data / "dev.txt")]
        return found + ["--label_file", str(self._data / "labels.txt")] * self.case.has_labels

    def _folder(self, name: str, seed: int) -> Path:
        return self._work / f"{name.replace(' ', '_').strip('-')}-{seed}"

    def _right(self, name: str) -> np.ndarray:
        """(N,), of each dev example the share of the seeds that are right."""
        size = len(columns(str(self._data / "dev.txt"))[0])
        found = np.ones((len(self._options.seeds), size))
        for row, seed in zip(found, self._options.seeds, strict=True):
            errors = self._folder(name, seed) / "report" / "errors.tsv"
            row[[int(line.split("\t")[0]) - 1 for line in errors.read_text(encoding="utf-8").splitlines()[1:]]] = 0.0
        return found.mean(axis=0)


def _mean(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{np.mean(known):.4f} [{min(known):.4f}, {max(known):.4f}]" if known else ""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, required=True)
    parser.add_argument("--data_dir", required=True, help="of the dataset, in the form of data/prepare.py")
    parser.add_argument("--work_dir", required=True, help="where files and results go")
    parser.add_argument("--model", required=True, help="hub name or local folder of the encoder")
    parser.add_argument("--runs", nargs="*", help="some of the runs; by default all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--epochs", type=positive, default=1)
    parser.add_argument("--batch_size", type=positive, default=32)
    parser.add_argument("--learning_rate", type=float, default=5e-5)
    parser.add_argument("--max_seq_length", type=positive, default=128)
    parser.add_argument("--examples", type=positive, help="training examples at most; of classes those of the largest")
    return parser


if __name__ == "__main__":
    main()
