"""The metadata on top of a model card, in YAML as the hub reads them.

References:
    https://huggingface.co/docs/hub/model-cards#model-card-metadata
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from bertorch.data.lines import cell
from bertorch.errors import UserError
from bertorch.files import reason
from bertorch.tasks.base import Task

# The hub's names of what an evaluation records; what is not here, such as a loss, is none of its metrics.
_METRICS = {
    "accuracy": "accuracy",
    "micro_F1": "f1",
    "macro_F1": "f1",
    "F1": "f1",
    "precision": "precision",
    "recall": "recall",
    "spearman": "spearmanr",
    "pearson": "pearsonr",
    "mrr@10": "mrr_at_10",
    "ndcg@10": "ndcg_at_10",
}
_NO_NAME = "dev"  # of dev data without a file


@dataclass(frozen=True)
class HubOptions:
    """What only the one who publishes a model can say of it."""

    license: str | None = None  # as the hub names it, such as apache-2.0
    languages: Sequence[str] = ()  # such as zh
    datasets: Sequence[str] = ()  # names on the hub

    @classmethod
    def of(cls, metadata: ModelCardData) -> "HubOptions":
        """What metadata have of it."""
        languages, datasets = (
            [value] if isinstance(value, str) else value or () for value in (metadata.language, metadata.datasets)
        )
        return cls(metadata.license, tuple(languages), tuple(datasets))

    def update(self, metadata: ModelCardData) -> None:
        """Put into metadata what is given, and leave the rest as it is."""
        if self.license is not None:
            metadata.license = self.license
        if self.languages:
            metadata.language = list(self.languages)
        if self.datasets:
            metadata.datasets = list(self.datasets)


NOTHING_GIVEN = HubOptions()


def task_metadata(
    task: Task[Any], *, base_model: str | None = None, name: str = "", dev_file: str | None = None,
    numbers: Mapping[str, float] | None = None,
) -> ModelCardData:  # fmt: skip
    """The metadata of a model, whose evaluation on a `dev_file` gave these numbers, if there was one.

    Args:
        task: of the model.
        base_model: the encoder that it started from, if that is one of the hub.
        name: of the model.
        dev_file: what `numbers` are of.
        numbers: by their names in `metrics.jsonl`.
    """
    data = Path(dev_file or _NO_NAME).name
    results = [
        EvalResult(
            task_type=task.pipeline_tag, dataset_type=cell(data), dataset_name=cell(data), metric_type=_METRICS[short],
            metric_name=short, metric_value=float(value),
        )
        for metric, value in (numbers or {}).items()
        if (short := metric.removeprefix("dev_")) in _METRICS
    ]  # fmt: skip
    return ModelCardData(
        base_model=base_model,
        library_name=task.library,
        pipeline_tag=task.pipeline_tag,
        tags=["bertorch"],
        model_name=cell(name) or task.name,
        eval_results=results or None,
    )


def with_metadata(metadata: ModelCardData, body: str) -> str:
    """A card whose text is `body`."""
    return f"---\n{metadata.to_yaml()}\n---\n\n{body}"


def read_metadata(card: str, path: Path) -> tuple[ModelCardData, str]:
    """The metadata of a card, and its text.

    Raises:
        UserError: they cannot be read; `path` names the card.
    """
    from huggingface_hub import ModelCard  # noqa: PLC0415 - it imports a template engine

    try:
        read = ModelCard(card)
    except Exception as error:  # of YAML, and of what the values have to be
        raise UserError(f"{path}: expected a card with metadata that the hub reads, got {reason(error)}") from error
    metadata = read.data
    assert isinstance(metadata, ModelCardData)
    return metadata, read.text.lstrip("\n")
