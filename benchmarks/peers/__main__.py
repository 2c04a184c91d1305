r"""Whole training runs: this project against what people would use instead, on the same data, model and precision.

    pip install -e '.[benchmarks]'
    python -m benchmarks.peers          # all tasks on the embedded samples
    python -m benchmarks.peers --cpu    # the same on the CPU, also where a GPU is
    python -m benchmarks.peers --task classifier --pretrained_model_name_or_path bert-base-chinese \
        --train_data_file ChnSentiCorp/train.tsv --dev_data_file ChnSentiCorp/dev.tsv \
        --label_file ChnSentiCorp/labels.txt --json result.json

| task | peer |
|---|---|
| classifier | transformers Trainer; the same with torch_compile where a GPU is |
| sentencebert | sentence-transformers, SoftmaxLoss |
| batchneg | sentence-transformers, MultipleNegativesRankingLoss |
| cosent | sentence-transformers, CoSENTLoss, on scored pairs |
| ranking | sentence-transformers' CrossEncoderTrainer, ListNetLoss with all weight on the positive: our loss |

Each contender trains through its own public entry, `fit` here and `Trainer.train()` there, with its own data loading,
padding and shuffling, and the same clipping, AdamW and linear schedule. All see the same examples, drawn from the
training file: as many as the run has steps for, each once unless the file has fewer. The contenders take turns, a run
each with the same seed, in one process; what a run leaves in memory, and what it compiled, is gone before the next.

What is told is the median over the runs of each:
- steps a second, of the steps after the first `--warmup`, timed as one piece until the device is done;
- tokens a second: those of the texts after cutting at `--max_seq_length`; padding does not count;
- model FLOP use: the arithmetic that these tokens need, a second, over what a large matrix product reaches on this
  device in this precision. A token takes 6 FLOPs for each parameter of the encoder's layers, and a text of length n
  another 12·layers·H·n² in attention; embeddings and heads are left out, and padding is no work;
- the first step: seconds until it is done, from reading the file, tokenising and loading the model on;
- memory, on a GPU, until the last step: the most that tensors took up at once, and the most that PyTorch held for
  them, where the memory of CUDA graphs counts in any case;
- the mean of the training loss over the run;
- with a dev file, the classifiers' examples a second in `evaluate` here and `Trainer.evaluate()` there, in the second
  of two evaluations after training, and the accuracy; the rerankers' pairs a second in `evaluate` here and
  `CrossEncoder.predict` there, and MRR@10; of cosent the pairs a second in `evaluate` and `encode`, and Spearman.
"""

import argparse
from importlib.util import find_spec

from benchmarks.measuring import positive, use_one_device
from benchmarks.peers.job import EVALUATED, TASKS


def main() -> None:
    """Measure, print, write JSON on demand."""
    parser = _parser()
    options = parser.parse_args()
    if options.task is None and (options.train_data_file or options.dev_data_file or options.label_file):
        parser.error("a data file needs --task")
    if not options.train_data_file and (options.dev_data_file or options.label_file):
        parser.error("--dev_data_file and --label_file need --train_data_file")
    if options.dev_data_file and options.task not in EVALUATED:
        parser.error(f"--dev_data_file is for --task {' or '.join(EVALUATED)}")
    tasks = [options.task] if options.task else list(TASKS)
    packages = ["accelerate"] + ([] if tasks == ["classifier"] else ["sentence_transformers", "datasets"])
    if missing := [package for package in packages if find_spec(package) is None]:
        parser.error(f"{', '.join(missing)}: missing; pip install -e '.[benchmarks]'")
    use_one_device(cpu=options.cpu)  # of several GPUs, a Trainer would take all
    from benchmarks.peers.comparison import run  # noqa: PLC0415 - takes seconds

    run(options, tasks)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, help="one task; by default all, on the embedded samples")
    parser.add_argument("--cpu", action="store_true", help="use the CPU, also where a GPU is")
    parser.add_argument("--pretrained_model_name_or_path", help="by default the embedded checkpoint")
    parser.add_argument("--train_data_file", help="by default the task's embedded sample")
    parser.add_argument(
        "--dev_data_file", help="of a classifier, reranker or cosent; no evaluation of --train_data_file without it"
    )
    parser.add_argument("--label_file", help="of --train_data_file; by default the labels are 0 and 1")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--max_seq_length", type=int, default=128)
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto", help="auto: bf16 on a GPU")
    parser.add_argument("--warmup", type=positive, help="steps of a run that are not timed: 3, on a GPU 40")
    parser.add_argument("--steps", type=positive, help="steps of a run that are, after them: 20, on a GPU 200")
    parser.add_argument("--rounds", type=positive, default=3, help="runs of each contender, with seeds from 0 on")
    parser.add_argument("--json", help="also write the result to this file")
    return parser


if __name__ == "__main__":
    main()
