"""Sentence embeddings with in-batch negatives, as a user of sentence-transformers would write it."""

from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from transformers import HfArgumentParser

from benchmarks.end_to_end.peer_script import Inputs, StepTimes, columns


def main() -> None:
    """Train, evaluate, save."""
    parser = HfArgumentParser((Inputs, SentenceTransformerTrainingArguments))
    inputs, arguments = parser.parse_args_into_dataclasses()
    model = SentenceTransformer(inputs.model)  # with mean pooling
    model.max_seq_length = inputs.max_seq_length
    anchors, positives, *negatives = columns(inputs.train_file)
    texts = {"anchor": anchors, "positive": positives}
    texts |= {f"negative_{number}": column for number, column in enumerate(negatives, start=1)}
    first, second, scores = columns(inputs.dev_file)
    SentenceTransformerTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_dict(texts),
        loss=MultipleNegativesRankingLoss(model),
        evaluator=EmbeddingSimilarityEvaluator(
            first, second, [float(score) for score in scores], batch_size=arguments.per_device_eval_batch_size
        ),
        callbacks=[StepTimes()],
    ).train()


if __name__ == "__main__":
    main()
