"""A Sentence-BERT classifier of pairs, as a user of sentence-transformers would write it."""

from datasets import Dataset
from sentence_transformers import (
    InputExample,
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.evaluation import LabelAccuracyEvaluator
from sentence_transformers.sentence_transformer.losses import SoftmaxLoss
from torch.utils.data import DataLoader
from transformers import HfArgumentParser

from benchmarks.end_to_end.peer_script import Inputs, StepTimes, columns


def main() -> None:
    """Train, evaluate, save."""
    parser = HfArgumentParser((Inputs, SentenceTransformerTrainingArguments))
    inputs, arguments = parser.parse_args_into_dataclasses()
    model = SentenceTransformer(inputs.model)  # with mean pooling
    model.max_seq_length = inputs.max_seq_length
    ids = {label: number for number, label in enumerate(inputs.labels)}
    loss = SoftmaxLoss(model, model.get_embedding_dimension(), num_labels=len(ids))
    first, second, labels = columns(inputs.train_file)
    dev = [InputExample(texts=texts, label=ids[label]) for *texts, label in zip(*columns(inputs.dev_file), strict=True)]
    SentenceTransformerTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_dict({"first": first, "second": second, "label": [ids[label] for label in labels]}),
        loss=loss,
        evaluator=LabelAccuracyEvaluator(
            DataLoader(dev, batch_size=arguments.per_device_eval_batch_size),  # type: ignore[arg-type] # a list will do
            softmax_model=loss,
        ),
        callbacks=[StepTimes()],
    ).train()


if __name__ == "__main__":
    main()
