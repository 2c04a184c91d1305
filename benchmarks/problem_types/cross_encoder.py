"""A reranker, as a user of sentence-transformers would train it."""

from collections.abc import Iterator
from typing import Any

from datasets import Dataset
from sentence_transformers import CrossEncoder, CrossEncoderTrainer, CrossEncoderTrainingArguments
from sentence_transformers.cross_encoder.evaluation import CrossEncoderRerankingEvaluator
from sentence_transformers.cross_encoder.losses import MultipleNegativesRankingLoss
from torch import nn
from transformers import HfArgumentParser
from typing_extensions import override

from benchmarks.end_to_end.peer_script import Inputs, StepTimes, columns


class GroupLoss(MultipleNegativesRankingLoss):  # type: ignore[misc] # sentence-transformers is not followed
    """Cross-entropy over the candidates of the query itself: its loss, without candidates of other queries."""

    @override
    def get_in_batch_negatives(self, *_: Any) -> Iterator[list[str]]:
        return iter(())


def main() -> None:
    """Train and evaluate."""
    parser = HfArgumentParser((Inputs, CrossEncoderTrainingArguments))
    inputs, arguments = parser.parse_args_into_dataclasses()
    model = CrossEncoder(inputs.model, num_labels=1, max_length=inputs.max_seq_length, activation_fn=nn.Identity())
    queries, positives, *negatives = columns(inputs.train_file)
    texts = {"query": queries, "positive": positives}
    texts |= {f"negative_{number}": column for number, column in enumerate(negatives, start=1)}
    CrossEncoderTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_dict(texts),
        loss=GroupLoss(model, scale=1, activation_fn=None),
        evaluator=CrossEncoderRerankingEvaluator(_samples(inputs.dev_file), at_k=10, write_csv=False),
        callbacks=[StepTimes()],
    ).train()


def _samples(path: str) -> list[dict[str, Any]]:
    """The queries with their candidates."""
    samples: dict[str, dict[str, Any]] = {}
    for query, candidate, relevance in zip(*columns(path), strict=True):
        sample = samples.setdefault(query, {"query": query, "positive": [], "negative": []})
        sample["positive" if float(relevance) > 0 else "negative"].append(candidate)
    return list(samples.values())


if __name__ == "__main__":
    main()
