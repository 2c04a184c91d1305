r"""Training steps of a classifier: packed batches against the padded batches of transformers' own model.

    python -m benchmarks.classifier_step
    python -m benchmarks.classifier_step --pretrained_model_name_or_path bert-base-chinese \
        --train_data_file ChnSentiCorp/train.tsv --label_file ChnSentiCorp/labels.txt --json result.json

Both take the same optimisation steps (forward, backward, clipping, AdamW, schedule) on the same examples in the same
order and precision, turn by turn in one process. Padded batches are as long as their longest sentence, as those of
transformers' collators.
"""

import argparse
import statistics
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from benchmarks.measuring import WARMUP, hardware, stepper, timed, write_json
from bertorch import distributed, log
from bertorch.data.batching import Dataset, PackedBatch, TrainingSchedule
from bertorch.data.readers import read_labelled_texts, read_labels
from bertorch.models.attention import BlockLayout
from bertorch.models.classifier import SequenceClassifier
from bertorch.models.encoder import load_pretrained, load_tokenizer
from bertorch.training.step import Precision

DATA = Path(__file__).parent.parent / "data"


def main() -> None:
    """Measure, print a table, write JSON on demand."""
    log.setup()
    options = _options()
    device = distributed.device()
    precision = Precision.resolve(options.precision, device)
    labels = read_labels(options.label_file)
    examples = read_labelled_texts(options.train_data_file, labels)
    name = options.pretrained_model_name_or_path
    dataset = Dataset.of_sequences(
        load_tokenizer(name), examples.columns, examples.labels, max_length=options.max_seq_length
    )

    packed = SequenceClassifier.from_pretrained(name, labels).to(device)
    padded = load_pretrained(AutoModelForSequenceClassification, name, num_labels=len(labels)).to(device)
    steps = {
        "padded": stepper(padded, lambda batch: _loss(_padded_logits(padded, batch), batch), precision),
        "packed": stepper(packed, lambda batch: _loss(packed(batch), batch), precision),
    }
    seconds: dict[str, list[float]] = {contender: [] for contender in steps}
    tokens = []
    schedule = TrainingSchedule(len(dataset), options.batch_size, accumulation=1, seed=0)
    taken = (numbers for epoch in count() for (numbers,) in schedule.steps(epoch))
    for numbers in islice(taken, options.steps + WARMUP):
        batch = dataset.batch(numbers)
        tokens.append(len(batch.input_ids))
        for contender, step in steps.items():
            seconds[contender].append(timed(partial(step, batch, batch.size), device))

    medians = {contender: statistics.median(times[WARMUP:]) for contender, times in seconds.items()}
    result = {
        "model": name,
        "data": options.train_data_file,
        "batch_size": options.batch_size,
        "steps": options.steps,
        "tokens_per_step": statistics.mean(tokens[WARMUP:]),
        "precision": precision.name,
        "hardware": hardware(device),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "seconds_per_step": medians,
        "padded_over_packed": medians["padded"] / medians["packed"],
    }
    _print(result)
    write_json(result, options.json)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pretrained_model_name_or_path", default=str(DATA / "bert-tiny-zh"))
    parser.add_argument("--train_data_file", default=str(DATA / "reviews" / "train.txt"))
    parser.add_argument("--label_file", default=str(DATA / "reviews" / "labels.txt"))
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--max_seq_length", type=int, default=128)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--steps", type=int, default=20, help=f"steps measured, after {WARMUP} that are not")
    parser.add_argument("--json", help="also write the result to this file")
    return parser.parse_args()


def _loss(logits: Tensor, batch: PackedBatch) -> Tensor:
    return F.cross_entropy(logits, batch.labels, reduction="sum")


def _padded_logits(model: PreTrainedModel, batch: PackedBatch) -> Tensor:
    layout = BlockLayout.of(batch)
    padding = model.config.pad_token_id or 0
    return model(input_ids=layout.pad(batch.input_ids, padding), attention_mask=layout.mask.long()).logits


def _print(result: dict[str, Any]) -> None:
    print(f"{result['model']}, {result['data']}, batch {result['batch_size']}, {result['precision']}")
    print(f"{result['hardware']}, {result['versions']}, {result['tokens_per_step']:.0f} tokens a step")
    for contender, seconds in result["seconds_per_step"].items():
        print(f"{contender}: {seconds:.4f} s/step")
    print(f"padded / packed: {result['padded_over_packed']:.2f}")


if __name__ == "__main__":
    main()
