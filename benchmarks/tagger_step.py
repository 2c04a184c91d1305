r"""Training steps of a tagger with a linear head and with a CRF on it, on the same batches.

    python -m benchmarks.tagger_step
    python -m benchmarks.tagger_step --pretrained_model_name_or_path bert-base-chinese \
        --train_data_file msra/train.json --label_file msra/labels.txt --json result.json

Both take the same optimisation steps (forward, backward, clipping, AdamW, schedule), turn by turn in one process.
"""

import argparse
import statistics
from functools import partial
from itertools import count, islice
from pathlib import Path

import torch
import transformers
from torch import Tensor

from benchmarks.measuring import WARMUP, hardware, stepper, timed, write_json
from bertorch import distributed, log
from bertorch.data.batching import TrainingSchedule
from bertorch.data.readers import read_labels
from bertorch.data.tagged_sentences import read_tagged_sentences
from bertorch.data.tagging import TaggedBatch, TaggedDataset
from bertorch.data.tags import TagSet
from bertorch.models.encoder import load_tokenizer
from bertorch.models.tagger import Tagger
from bertorch.training.step import Precision

DATA = Path(__file__).parent.parent / "data"


def main() -> None:
    """Measure, print a table, write JSON on demand."""
    log.setup()
    options = _options()
    device = distributed.device()
    precision = Precision.resolve(options.precision, device)
    name = options.pretrained_model_name_or_path
    tags = TagSet(read_labels(options.label_file), options.tag, options.label_file)
    dataset = TaggedDataset.of(
        load_tokenizer(name),
        read_tagged_sentences(options.train_data_file, tags),
        max_length=options.max_seq_length,
    )
    taggers = {head: Tagger.from_pretrained(name, tags, use_crf=head == "crf").to(device) for head in ("linear", "crf")}
    steps = {head: stepper(tagger, partial(_loss, tagger), precision) for head, tagger in taggers.items()}
    seconds: dict[str, list[float]] = {head: [] for head in steps}
    schedule = TrainingSchedule(len(dataset), options.batch_size, accumulation=1, seed=0)
    taken = (numbers for epoch in count() for (numbers,) in schedule.steps(epoch))
    words = []
    for numbers in islice(taken, options.steps + WARMUP):
        batch = dataset.batch(numbers)
        words.append(len(batch.labels))
        for head, step in steps.items():
            seconds[head].append(timed(partial(step, batch, len(batch.labels)), device))

    medians = {head: statistics.median(times[WARMUP:]) for head, times in seconds.items()}
    result = {
        "model": name,
        "data": options.train_data_file,
        "batch_size": options.batch_size,
        "steps": options.steps,
        "labels": len(tags),
        "words_per_step": statistics.mean(words[WARMUP:]),
        "precision": precision.name,
        "hardware": hardware(device),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "seconds_per_step": medians,
        "crf_over_linear": medians["crf"] / medians["linear"],
    }
    print(f"{name}, {options.train_data_file}, {len(tags)} tags, batch {options.batch_size}, {precision.name}")
    print(f"{result['hardware']}, {result['versions']}, {result['words_per_step']:.0f} words a step")
    for head, median in medians.items():
        print(f"{head}: {median:.4f} s/step")
    print(f"crf / linear: {result['crf_over_linear']:.2f}")
    write_json(result, options.json)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pretrained_model_name_or_path", default=str(DATA / "bert-tiny-zh"))
    parser.add_argument("--train_data_file", default=str(DATA / "ner" / "train.json"))
    parser.add_argument("--label_file", default=str(DATA / "ner" / "labels.txt"))
    parser.add_argument("--tag", default="bios")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--max_seq_length", type=int, default=128)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--steps", type=int, default=20, help=f"steps measured, after {WARMUP} that are not")
    parser.add_argument("--json", help="also write the result to this file")
    return parser.parse_args()


def _loss(tagger: Tagger, batch: TaggedBatch) -> Tensor:
    return tagger.loss(tagger(batch), batch)


if __name__ == "__main__":
    main()
