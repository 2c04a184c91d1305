"""Several models of one task as one: the mean over what they say, not over their weights.

An ensemble is a task like its members: the evaluation loop, `bertorch.load` and the commands do not know it. It is not
trained and not saved; its folder is that of `--folds`. Another kind is another class here, and an entry in `ENSEMBLES`.

References:
    Hansen and Salamon, Neural Network Ensembles, IEEE PAMI 12, 1990.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig
from typing_extensions import override

from bertorch.data.batch import PackedBatch
from bertorch.data.tagged_dataset import TaggedBatch
from bertorch.encoder.encoder_model import EncoderModel
from bertorch.errors import UserError
from bertorch.tasks.base import Inference, Task
from bertorch.tasks.calibrated import CalibratedTask
from bertorch.tasks.calibration import Temperature
from bertorch.tasks.classification import ClassificationTask
from bertorch.tasks.fitting import FittedFile
from bertorch.tasks.sentence_bert import SentenceBertTask
from bertorch.tasks.tag_heads import Decoded, LinearTagger
from bertorch.tasks.tagging import TaggingTask


class Members(EncoderModel):
    """K models side by side; config and labels are those of the first."""

    def __init__(self, models: Sequence[EncoderModel]) -> None:
        super().__init__()
        self.members = nn.ModuleList(models)

    @property
    @override
    def config(self) -> PretrainedConfig:
        return self.members[0].config


def mean_probabilities(log_probabilities: Sequence[Tensor]) -> Tensor:
    """The logarithm of the mean of K distributions, (N, C) each, without the zeros that small ones round to."""
    return torch.stack(list(log_probabilities)).logsumexp(dim=0) - math.log(len(log_probabilities))


class CalibratedMembers(CalibratedTask):
    """An ensemble whose members may be calibrated, each by itself; the mean is not calibrated once more."""

    _members: Sequence[CalibratedTask]
    temperature = Temperature()

    @property
    @override
    def fitted_on(self) -> FittedFile | None:
        """The file that a member's temperature was fitted on, first of all one that `read_labelled` has read."""
        files = [member.fitted_on for member in self._members if member.fitted_on is not None]
        here = [file for file in files if self._file is not None and file.digest == self._file.digest]
        return next(iter([*here, *files]), None)

    @override
    def _fitted_note(self) -> str:
        return "the probabilities of its models are calibrated, each with a temperature of its own"


class ClassificationEnsemble(CalibratedMembers, ClassificationTask):
    """The outputs are logarithms of the members' mean probabilities (N, C); of windows each has taken the mean."""

    def __init__(self, members: Sequence[ClassificationTask], folders: Sequence[str]) -> None:  # noqa: ARG002
        vars(self).update(vars(members[0]))  # labels, and how texts become inputs
        self.model, self._members = Members([member.model for member in members]), members
        self.temperature = Temperature()  # the members have their own

    @override
    def outputs(self, batch: PackedBatch) -> Tensor:
        return mean_probabilities([member.calibrated(member.outputs(batch)) for member in self._members])


class SiameseMembers(Members):
    """Siamese classifiers on the same pairs: their embeddings have no common space, probabilities and cosines do."""

    members: Any  # of K `SiameseClassifier`

    def __init__(self, tasks: Sequence[SentenceBertTask]) -> None:
        super().__init__([task.siamese for task in tasks])
        self._tasks = tasks

    def forward(self, batch: PackedBatch) -> Tensor:
        """Embeddings (examples, K, 2, E) by each member."""
        return torch.stack([member(batch) for member in self.members], dim=1)

    def classify(self, embeddings: Tensor) -> Tensor:
        """Logarithms of the mean probabilities, (examples, K, 2, E) → (examples, C)."""
        of_tasks = zip(self._tasks, embeddings.unbind(dim=1), strict=True)
        return mean_probabilities([task.calibrated(task.siamese.classify(of)) for task, of in of_tasks])

    def cosines(self, embeddings: Tensor) -> Tensor:
        """The mean of the members' cosines, (examples, K, 2, E) → (examples,).

        It is the cosine of the members' embeddings end to end, each of length 1.
        """
        pairs = zip(self.members, embeddings.unbind(dim=1), strict=True)
        return torch.stack([member.cosines(of) for member, of in pairs]).mean(dim=0)


class SentenceBertEnsemble(CalibratedMembers, SentenceBertTask):
    """The members' mean probabilities and mean cosine; without embeddings of its own."""

    siamese: Any

    def __init__(self, members: Sequence[SentenceBertTask], folders: Sequence[str]) -> None:
        vars(self).update(vars(members[0]))
        self.model = self.siamese = SiameseMembers(members)
        self._members = members
        self.temperature = Temperature()  # the members have their own
        self.embedding_size, self._folders = 0, folders

    @override
    def embedder(self, *, normalize: bool, dimensions: int | None = None, role: str | None = None) -> Inference[str]:
        raise UserError(
            f"expected one model to encode with, got {len(self._folders)} of --folds, whose embeddings cannot be "
            f"compared with each other; name one of them: {', '.join(self._folders)}"
        )

    @override
    def usage(self) -> tuple[str, str]:
        pair = ("房间干净，早餐也丰富。", "早餐不错。")
        return f"predict([{pair!r}])[0].label", super().usage()[1]


class TaggerMembers(Members):
    """The mean of the members' emissions, decoded once; under a CRF with the mean of their scores.

    The first member decodes: its CRF takes the mean of all.
    """

    members: Any  # of K `LinearTagger`
    reads_spans, is_flat = LinearTagger.reads_spans, LinearTagger.is_flat

    def __init__(self, taggers: Sequence[Any]) -> None:
        super().__init__(taggers)
        self.tags = taggers[0].tags
        with torch.no_grad():
            for scores in zip(*(tagger.crf.parameters() for tagger in taggers), strict=True):
                scores[0].copy_(torch.stack(scores).mean(dim=0))

    def forward(self, batch: TaggedBatch) -> Tensor:
        """Emissions (K, C), at least in fp32."""
        return torch.stack([member(batch) for member in self.members]).mean(dim=0)

    def loss(self, outputs: Tensor, batch: TaggedBatch) -> Tensor:
        """See `SpanModel`."""
        return self.members[0].loss(outputs, batch)

    def decode(self, outputs: Tensor, batch: TaggedBatch, *, with_scores: bool = False) -> Decoded:
        """See `SpanModel`."""
        return self.members[0].decode(outputs, batch, with_scores=with_scores)

    def gold_extents(self, batch: TaggedBatch) -> Tensor:
        """See `SpanModel`."""
        return self.members[0].gold_extents(batch)

    def marginals(self, outputs: Tensor, batch: TaggedBatch) -> Tensor:
        """See `SpanModel`."""
        return self.members[0].marginals(outputs, batch)

    def usage_elsewhere(self, text: str) -> str:
        """See `SpanModel`."""
        return self.members[0].usage_elsewhere(text)


class TaggingEnsemble(TaggingTask):
    """Tags by the mean of the members' emissions."""

    span_model: Any

    def __init__(self, members: Sequence[TaggingTask], folders: Sequence[str]) -> None:
        if not isinstance(members[0].span_model, LinearTagger):
            raise UserError(
                f"{folders[0]}: expected taggers with a tag for each word in an ensemble, whose emissions have a mean, "
                f"got the head {members[0].head}; name one of the folders: {', '.join(folders)}"
            )
        vars(self).update(vars(members[0]))
        self.model = self.span_model = TaggerMembers([member.span_model for member in members])


# By the name of the members' task.
ENSEMBLES: dict[str, Callable[[Sequence[Any], Sequence[str]], Task[Any]]] = {
    ClassificationTask.name: ClassificationEnsemble,
    SentenceBertTask.name: SentenceBertEnsemble,
    TaggingTask.name: TaggingEnsemble,
}


def joined(members: Sequence[Task[Any]], folders: Sequence[str]) -> Task[Any]:
    """The ensemble of tasks with the same labels, which it takes over; `folders` are theirs.

    Raises:
        UserError: they are of a task without ensembles, or not all of one task with the same labels.
    """
    first = members[0]
    for member, folder in zip(members, folders, strict=True):
        if (member.name, member.head, list(member.label_names)) != (first.name, first.head, list(first.label_names)):
            raise UserError(f"{folder}: expected a model of the same task, head and labels as in {folders[0]}")
    if first.name not in ENSEMBLES:
        raise UserError(f"{folders[0]}: expected a task of {', '.join(ENSEMBLES)} in an ensemble, got {first.name}")
    return ENSEMBLES[first.name](members, folders)
