r"""Whole commands as a user types them, from the start of the process to its exit: this project and its peers in turns.

    pip install -e '.[benchmarks]'
    python -m benchmarks.end_to_end                  # all tasks on the embedded samples
    python -m benchmarks.end_to_end --task classifier --pretrained_model_name_or_path bert-base-chinese \
        --train_data_file ChnSentiCorp/train.tsv --dev_data_file ChnSentiCorp/dev.tsv \
        --label_file ChnSentiCorp/labels.txt --epochs 1 --json result.json
    python -m benchmarks.end_to_end --case saving    # what saves cost a run whose steps cost the host nothing

| task | ours | peer, a script of a user in this folder |
|---|---|---|
| classifier | `run_classifier.py` | `trainer_classifier.py`, transformers Trainer |
| sentencebert | `run_sentencebert.py` | `softmax_loss.py`, sentence-transformers with SoftmaxLoss |
| batchneg | `run_batchneg.py` | `ranking_loss.py`, sentence-transformers with MultipleNegativesRankingLoss |

Both train the same model on the same files in the same precision, evaluate and save after the same steps, and otherwise
have their defaults; what ours has by default and theirs has not (such as `--save_interval`) stays, `--our_options`
changes it. What is told:
- wall clock: seconds from start to exit, medians over the turns; the ratio is the median over the turns of theirs to
  ours, with the 95 % interval of Student's t over the logarithms. The one that goes first changes from turn to turn;
- steps/s while stepping, and seconds in evaluations, as both log them: what the ratio would be if there were nothing
  but steps and evaluations. An evaluation of ours is timed from its training line to its own;
- the last dev metric.

`--case saving` trains a classifier of the shape of bert-base; after a first real step, steps sleep, 10 ms each over two
minutes, at the defaults. Waiting is the time that the train loop spends in evaluating and saving, snapshots counted,
without what comes after the last step, which is told by itself. A run without saves shows what the loop loses besides.
Saves go where temporary files go; TMPDIR names another disk.
"""

import argparse
import os

from benchmarks.end_to_end import ENVIRONMENT
from benchmarks.end_to_end.commands import PAIRS
from benchmarks.measuring import positive, use_one_device


def main() -> None:
    """Measure, print, write JSON on demand."""
    parser = _parser()
    options = parser.parse_args()
    if bool(options.train_data_file) != bool(options.dev_data_file):
        parser.error("--train_data_file and --dev_data_file go together")
    if options.train_data_file and options.task is None:
        parser.error("a data file needs --task")
    if options.label_file and not options.train_data_file:
        parser.error("--label_file needs --train_data_file")
    use_one_device(cpu=options.cpu)  # of several GPUs, a Trainer would take all
    if options.case == "saving":
        from benchmarks.end_to_end.saving import run  # noqa: PLC0415 - only what the case needs

        run(options)
        return
    from benchmarks.end_to_end.turns import take_turns  # noqa: PLC0415 - only what the case needs

    environment = ENVIRONMENT | {"CUDA_VISIBLE_DEVICES": os.environ["CUDA_VISIBLE_DEVICES"]}
    try:
        take_turns(options, [options.task] if options.task else list(PAIRS), environment)
    except ModuleNotFoundError as error:
        parser.error(f"{error.name} is missing: pip install -e '.[benchmarks]'")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=["commands", "saving"], default="commands")
    parser.add_argument("--cpu", action="store_true", help="use the CPU, also where a GPU is")
    parser.add_argument("--json", help="also write the result to this file")
    commands = parser.add_argument_group("commands")
    commands.add_argument("--task", choices=list(PAIRS), help="one task; by default all, on the embedded samples")
    commands.add_argument("--turns", type=positive, default=3, help="runs of each command")
    commands.add_argument(
        "--pretrained_model_name_or_path", help="by default the embedded one; on a GPU bert-base with random weights"
    )
    commands.add_argument("--train_data_file", help="by default the task's embedded sample")
    commands.add_argument("--dev_data_file", help="of --train_data_file")
    commands.add_argument("--label_file", help="of --train_data_file; by default the labels are 0 and 1")
    commands.add_argument("--epochs", type=positive, default=3)
    commands.add_argument("--max_steps", type=positive, help="end the runs after so many steps")
    commands.add_argument("--batch_size", type=positive, default=32)
    commands.add_argument("--max_seq_length", type=positive, default=128)
    commands.add_argument("--save_steps", type=positive, default=100)
    commands.add_argument("--eval_steps", type=positive, help="by default --save_steps")
    commands.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto", help="auto: bf16 on a GPU")
    commands.add_argument("--our_options", default="", help="more options of our commands, in quotation marks")
    saving = parser.add_argument_group("saving")
    saving.add_argument("--seconds", type=float, default=120.0, help="of all steps together")
    saving.add_argument("--step_seconds", type=float, default=0.01, help="of one step")
    saving.add_argument("--pretend", action="store_true", help="a tiny encoder in place of bert-base")
    return parser


if __name__ == "__main__":
    main()
