r"""Training steps a second beside other programs that compute on the same cores, with several settings in turns.

    python -m benchmarks.busy
    python -m benchmarks.busy --programs 0 1 --settings "" "--threads 1" "GOMP_SPINCOUNT=3000 OMP_NUM_THREADS=2"

A setting is one or several words: variables of the environment, and options of the command. The empty one is the
default. Each run is a command, `run_classifier.py` on the CPU; its
speed is the median of its log lines but the first. The machine must be idle otherwise.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from benchmarks.measuring import DATA, hardware, positive, run_command, versions, write_json
from bertorch.training.metrics_file import METRICS, read_metrics

SETTINGS = ("", "GOMP_SPINCOUNT=10000", "GOMP_SPINCOUNT=1000", "OMP_WAIT_POLICY=PASSIVE", "--threads 1")
_ENVIRONMENT = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")  # is what the settings say
_LINES = 8  # of the log of a run


def main() -> None:
    """Measure, print a table, write JSON on demand."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", default=SETTINGS)
    parser.add_argument("--programs", nargs="+", type=int, default=[0, 1, 2], help="numbers of other programs")
    parser.add_argument("--turns", type=positive, default=3, help="runs of each setting beside each number of programs")
    parser.add_argument("--steps", type=positive, default=40, help="of a run")
    parser.add_argument("--pretrained_model_name_or_path", default=str(DATA / "bert-tiny-zh"))
    parser.add_argument("--train_data_file", default=str(DATA / "reviews" / "train.txt"))
    parser.add_argument("--label_file", default=str(DATA / "reviews" / "labels.txt"))
    parser.add_argument("--json", help="also write the result to this file")
    options = parser.parse_args()
    runs: dict[str, dict[int, list[float]]] = {
        each: {some: [] for some in options.programs} for each in options.settings
    }
    for _ in range(options.turns):
        for some in options.programs:
            for setting in options.settings:
                with others(some):
                    runs[setting][some].append(speed(options, setting))
    medians = {each: {some: statistics.median(of) for some, of in speeds.items()} for each, speeds in runs.items()}
    result = {
        "hardware": hardware(torch.device("cpu")),
        "versions": versions("torch", "transformers"),
        "options": vars(options),
        "steps_per_second": medians,
        "runs": runs,
    }
    print(f"{result['hardware']}, {result['versions']}; steps a second by the number of other programs")
    width = max(len(each or "default") for each in medians)
    print(f"{'':{width}}", *(f"{some:>7}" for some in options.programs))
    for setting, speeds in medians.items():
        print(f"{setting or 'default':{width}}", *(f"{of:7.2f}" for of in speeds.values()))
    write_json(result, options.json)


@contextmanager
def others(number: int) -> Iterator[None]:
    """So many programs that each keep a core busy."""
    programs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
    try:
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()


def speed(options: argparse.Namespace, setting: str) -> float:
    """Steps a second of a run with a setting."""
    words = setting.split()
    variables = dict(word.split("=", 1) for word in words if "=" in word and not word.startswith("-"))
    environment = {name: value for name, value in os.environ.items() if name not in _ENVIRONMENT}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"} | variables
    arguments = {
        name: getattr(options, name) for name in ("pretrained_model_name_or_path", "train_data_file", "label_file")
    }
    arguments |= {
        "epochs": options.steps,
        "max_steps": options.steps,
        "save_steps": options.steps,
        "keep_checkpoints": 0,
    }
    arguments["logging_steps"] = max(1, options.steps // _LINES)
    command = [sys.executable, "run_classifier.py", *(word for word in words if word.split("=")[0] not in variables)]
    command += [str(part) for name, value in arguments.items() for part in (f"--{name}", value)]
    with tempfile.TemporaryDirectory() as folder:
        run_command([*command, "--saved_dir", folder], environment)
        speeds = [line["speed"] for line in read_metrics(Path(folder) / METRICS) if "speed" in line]
    return statistics.median(speeds[1:] or speeds)


if __name__ == "__main__":
    main()
