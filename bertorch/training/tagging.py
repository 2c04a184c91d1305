"""The task of sequence labelling."""

from collections.abc import Mapping, Sequence

import torch
from loguru import logger
from torch import Tensor, nn
from transformers import AutoModelForTokenClassification, PretrainedConfig

from bertorch.data.tagged_dataset import TaggedBatch
from bertorch.data.tags import SCHEMES, TagSet
from bertorch.encoder.pretrained import empty_model, load_config, saved_label_names
from bertorch.encoder.tagger import Tagger
from bertorch.errors import UserError
from bertorch.training import weights as checkpoint
from bertorch.training.entity_f1 import EntityMetric
from bertorch.training.step import BatchOutput
from bertorch.training.tasks import Task
from bertorch.training.weights import Companion


def load_tagger(folder: str) -> Tagger:
    """Load what `run_ner.py` saved, with the CRF if it has one.

    Args:
        folder: `--saved_dir` of the run.

    Raises:
        UserError: it is no such folder, or one that cannot be read.
    """
    return build_tagger(folder, load_config(folder, "the model's folder"), checkpoint.load_weights(folder))[0]


def build_tagger(folder: str, config: PretrainedConfig, weights: Mapping[str, Tensor]) -> tuple[Tagger, TagSet]:
    """The tagger of a config and weights that `run_ner.py` saved, and its tags.

    Args:
        folder: for errors.
        config: its config.
        weights: its weights.

    Raises:
        UserError: they are not of `run_ner.py`, or not of the same save.
    """
    scheme = getattr(config, "tag_scheme", None)
    if scheme not in SCHEMES:
        raise UserError(f"{folder}: expected a folder saved by run_ner.py, got a config.json without its tag_scheme")
    tags = TagSet(saved_label_names(config, folder), scheme, folder)
    model = empty_model(AutoModelForTokenClassification, config, folder)
    tagger = Tagger(model, Tagger.crf_over(tags, learned="crf.transitions" in weights))
    checkpoint.place(tagger.weights, weights, tagger.encoder_prefix, folder)
    return tagger.eval(), tags


class TaggingTask(Task[TaggedBatch]):
    """Token cross-entropy or the negative log-likelihood of a CRF, a word; the dev metric is entity F1.

    Args:
        model: gives emissions (K, C).
        companions: saved with it.
        tags: the tags and their scheme.
        crf_learning_rate: rate of the CRF and the linear layer under it; without a CRF it is not used.
    """

    def __init__(
        self, model: Tagger, companions: Sequence[Companion], *, tags: TagSet, crf_learning_rate: float
    ) -> None:
        super().__init__(model, companions)
        self._tagger = model
        self._tags = tags
        self.head_learning_rate = crf_learning_rate if model.crf.learned else None

    def training_output(self, batch: TaggedBatch) -> BatchOutput:
        """The loss summed over the words of a batch."""
        return BatchOutput(loss=self._tagger.loss(self._tagger(batch), batch), correct=None)

    def new_metric(self, device: torch.device) -> EntityMetric:
        """Mean loss and entity F1."""
        return EntityMetric(self._tagger, self._tags, device)

    def head_parameters(self) -> Sequence[nn.Parameter]:
        """Of the CRF and of the layers between it and the encoder."""
        if not self._tagger.crf.learned:
            return ()
        encoder = set(self._tagger.encoder.parameters())
        return [parameter for parameter in self._tagger.parameters() if parameter not in encoder]

    def adapted(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Those of the earlier bertorch without the label [PAD], which its taggers had as the last."""
        names = {name: name.removeprefix("module.") for name in weights}
        if not any(name.startswith("encoder.embeddings.") for name in names.values()):
            return dict(weights)
        expected = {name: tensor.shape for name, tensor in self.model.weights.state_dict().items()}
        adapted = {
            name: _without_last_label(tensor, expected.get(names[name], tensor.shape), len(self._tags))
            for name, tensor in weights.items()
        }
        dropped = [name for name in weights if adapted[name].shape != weights[name].shape]
        if dropped:
            logger.info("left out the last label of the earlier bertorch, [PAD], in {}", ", ".join(dropped))
        return adapted


def _without_last_label(tensor: Tensor, expected: torch.Size, labels: int) -> Tensor:
    """The tensor in the shape expected, if it has one label more there; else as it is."""
    with_one_more = [labels + 1 if size == labels else size for size in expected]
    return tensor[tuple(map(slice, expected))] if list(tensor.shape) == with_one_more else tensor
