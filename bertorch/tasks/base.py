"""What the train loop, the evaluation loop, the commands and `load` know of a task."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, Self, TypedDict, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from bertorch.data.batch import PackedBatch
from bertorch.data.dataset import Examples
from bertorch.encoder.encoder_model import EncoderModel
from bertorch.encoder.onnx_model import OnnxModel
from bertorch.errors import UserError
from bertorch.tasks.agreement import Agreement
from bertorch.tasks.fitting import Fitting
from bertorch.tasks.label_counts import LabelCounts
from bertorch.tasks.losses import twin_divergence
from bertorch.tasks.metadata import ModelMetadata
from bertorch.tasks.metrics import Metric

B = TypeVar("B", bound=PackedBatch)
Input = TypeVar("Input")
# Parts of the loss by name, each summed over the labels of a batch; `loss` is the sum to minimise, with gradient.
Losses = dict[str, Tensor]
DIVERGENCE = "divergence"  # one of the parts
Mixer = Callable[[Losses, Tensor, B], Losses]  # from the parts, the outputs and the batch to other parts


class Savable(Protocol):
    """Something with files in a saved folder, such as a config or a tokenizer of transformers."""

    def save_pretrained(self, save_directory: Any) -> Any:
        """Write its files into a folder."""


class Negatives(Enum):
    """Where the negatives of an example come from."""

    NONE = "the loss of an example does not depend on others"
    LOCAL = "the batch of its own process"
    GLOBAL = "the batches of all processes, which compute the loss together"


class InputSettings(TypedDict, total=False):
    """How texts become inputs: keyword arguments of every task."""

    tokenizer: PreTrainedTokenizerBase
    max_seq_length: int  # tokens of an example, or of a window


class LoadedFolder(NamedTuple):
    """The content of a saved folder, from which a task is built."""

    folder: str
    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    weights: Mapping[str, Tensor]  # with a graph those beside it
    metadata: ModelMetadata
    graph: OnnxModel | None = None  # what stands for the encoder, and what of the model is exported with it

    @property
    def inputs(self) -> InputSettings:
        """The keyword arguments of the task."""
        return {"tokenizer": self.tokenizer, "max_seq_length": self.metadata.max_seq_length}


@dataclass(frozen=True)
class Inference(Generic[Input]):
    """How results come from inputs, such as texts or pairs of texts."""

    size_of: Callable[[Input], int]  # characters of an input
    examples_of: Callable[[Sequence[Input]], Examples]  # tokenises inputs, at least one
    rows_of: Callable[[Any], Tensor]  # a batch on the device → (rows, *shape), one row an input, in order
    shape: tuple[int, ...] = ()  # of a row
    dtype: torch.dtype = torch.float32  # of the rows
    # Whether an input has any number of rows: their first column is then the input's index in the batch, and the
    # results are arrays (rows of the input, …) without it.
    is_set: bool = False


class Errors(NamedTuple):
    """The wrong examples of an evaluation: names of the columns, and a row for each."""

    header: list[str]
    rows: list[list[str]]


class Task(ABC, Generic[B]):
    """A model, and everything that is its task's own: loss, metric, prediction, report, card.

    A task is built for training by a class method with the options of its script, and by `from_folder` from a saved
    folder.

    Args:
        model: maps a packed batch to outputs, such as logits (N, C).
        tokenizer: of the model; None in tests that need no texts.
        max_seq_length: tokens of an example, or of a window.
    """

    name: ClassVar[str]  # in config.json and the registry
    scripts: ClassVar[str]  # that save such folders
    pipeline_tag: ClassVar[str]  # what the model is for, as the hub names it
    library: ClassVar[str] = "transformers"  # what loads it, as the hub names it
    architecture: ClassVar[str] = ""  # how the name of its class in transformers ends, if the whole model is one
    head: str  # its name in config.json
    label_names: Sequence[str] = ()  # C of them in the order of their ids; none without classes
    loss_parts: tuple[str, ...] = ("loss",)  # keys of `losses`; a training line has their means over the labels
    negatives = Negatives.NONE
    graph_obstacle: str | None = None  # what of the task keeps a step from being a CUDA graph, beside the next
    recomputes = False  # whether the backward pass runs parts of the forward pass again
    head_learning_rate: float | None = None  # of `head_parameters`; None: as the encoder's
    embedding_size = 0  # E of its sentence embeddings; 0 without
    embedding_widths: Sequence[int] = ()  # of how many of their dimensions it was trained, with `--matryoshka`
    has_confusions = False  # in its report
    fitting: Fitting | None = None  # what `bertorch.evaluate` can fit to its models

    def __init__(
        self,
        model: EncoderModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        max_seq_length: int = 128,
    ) -> None:
        self.model = model
        self._tokenizer = tokenizer
        self.max_seq_length = max_seq_length

    # Training

    def outputs(self, batch: B) -> Tensor:
        """What loss and metric take, such as logits (N, C)."""
        return self.model(batch)

    def losses(self, batch: B, mixers: Sequence["Mixer[B]"] = ()) -> Losses:
        """The parts of the loss of a training batch, each summed over its labels.

        A batch with each example twice also has the part `DIVERGENCE`, see `bertorch.tasks.losses.twin_divergence`.
        The `mixers` change the parts that the task gives.
        """
        outputs = self.outputs(batch)
        losses = self.losses_of(outputs, batch)
        for mix in mixers:
            losses = mix(losses, outputs, batch)
        if batch.is_twice:
            losses[DIVERGENCE] = twin_divergence(
                self.log_probabilities(outputs), batch.twins, self.label_weights(batch)
            )
        return losses

    def log_probabilities(self, outputs: Tensor) -> Tensor:
        """The distribution over the classes of each label, (labels, C), that R-Drop compares.

        Raises:
            UserError: the outputs are no such distributions.
        """
        raise UserError(f"--r_drop compares probabilities of classes, which the models of {self.scripts} do not have")

    def label_probabilities(self, outputs: Tensor, batch: B) -> Tensor:
        """The probabilities of the classes of each label of a batch, (labels, C), without a gradient.

        Raises:
            UserError: as `log_probabilities`.
        """
        return self.log_probabilities(outputs).exp()

    @abstractmethod
    def losses_of(self, outputs: Tensor, batch: B) -> Losses:
        """The parts of the loss, from the outputs of a batch."""

    def loss_weight(self, examples: Examples, indices: np.ndarray) -> float:
        """What these examples weigh in the mean of the loss; the other parts are means over the labels."""
        return examples.label_count(indices)

    def label_weights(self, batch: B) -> Tensor | None:
        """(labels,) by which the loss of each label of a batch is multiplied; None: 1."""
        return None

    @abstractmethod
    def metric(self, device: torch.device) -> Metric[B]:
        """A fresh metric, which takes `outputs` and the batches."""

    def evaluation(self, examples: Examples, device: torch.device) -> tuple[Callable[[B], Tensor], Metric[B]]:
        """What is computed of each batch of these examples in an evaluation, and a fresh metric that takes it."""
        return self.outputs, self.metric(device)

    def label_counts(self, examples: Examples) -> LabelCounts | None:
        """How often each label occurs in the examples; None without labels."""
        return None

    def head_parameters(self) -> Sequence[nn.Parameter]:
        """The parameters with a learning rate of their own."""
        return ()

    def convert_legacy_weights(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights of an earlier program, under its own names, in the shapes that this task has for them."""
        return dict(weights)

    # The saved folder

    @classmethod
    def architecture_of(cls, head: str) -> str:  # noqa: ARG003 - of tasks whose heads differ in it
        """As `architecture`, of a model with this head."""
        return cls.architecture

    @classmethod
    @abstractmethod
    def from_folder(cls, loaded: LoadedFolder) -> Self:
        """Build the task of a saved folder.

        Raises:
            UserError: the folder lacks something, or its parts don't belong together.
        """

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer, which every task but those of tests has."""
        assert self._tokenizer is not None
        return self._tokenizer

    def settings(self) -> Mapping[str, Any]:
        """What config.json keeps for `from_folder`, beside task, head and max_seq_length; as JSON has it."""
        return {}

    @property
    def savables(self) -> list[Savable]:
        """What is saved beside the weights: the config with our metadata, the tokenizer."""
        metadata = ModelMetadata(
            task=self.name, head=self.head, max_seq_length=self.max_seq_length, settings=self.settings()
        )
        metadata.write(self.model.config)
        return [self.model.config, *([] if self._tokenizer is None else [self._tokenizer])]

    def notes(self) -> Sequence[str]:
        """What whoever uses the model must know of how it was trained, a sentence each: for report and model card."""
        return ()

    def fitted_notes(self, quoted: Callable[[str], str] = str) -> Sequence[str]:
        """As `notes`, of what was fitted to the model after training; `quoted` is how the name of a file is written."""
        return ()

    @abstractmethod
    def usage(self) -> tuple[str, str]:
        """For the model card: a call on `bertorch.load(folder)`, and Python without bertorch, `{folder}` left open."""

    # Predictions; what a task does not have raises a UserError

    def scorer(self) -> Inference[Any]:
        """Probabilities of the labels, then the cosine of a pair of embeddings, as far as the task has them."""
        raise self._unsuited("predict", "a text or embedding")

    def logit_scorer(self) -> Inference[Any]:
        """Logits (C,) of the labels, as the model gives them."""
        raise self._unsuited("predict --logits", "a classification")

    def checked_inputs(self, inputs: Iterable[Any]) -> Iterator[Any]:
        """Inputs of `scorer` in the form that it takes; a `UserError` at an input of another form."""
        raise self._unsuited("predict", "a text or embedding")

    def embedder(self, *, normalize: bool, dimensions: int | None = None, role: str | None = None) -> Inference[str]:
        """Sentence embeddings (E,) of texts of a role, see `bertorch.data.prompts`.

        With `dimensions` only the first ones, always of length 1.
        """
        raise self._unsuited("encode", "an embedding")

    def prompts_of_columns(self, count: int) -> Sequence[str]:
        """What stands before the texts of each column of lines with so many, first queries, then passages."""
        raise self._unsuited("encode", "an embedding")

    def ranker(self) -> Inference[Any]:
        """Scores (1,) of pairs, a query and a candidate each."""
        raise self._unsuited("rank", "a reranking")

    def span_finder(self, *, with_scores: bool = True) -> Inference[Any]:
        """Entities of `bertorch.tasks.text_tokens.TextTokens`: rows start, end, type, score (or 1)."""
        raise self._unsuited("tag", "a tagging")

    def _unsuited(self, use: str, suited: str) -> UserError:
        return UserError(f"expected {suited} model to {use} with, got one of {self.scripts}")

    # Lines of `bertorch.predict`

    @abstractmethod
    def predictor(self) -> Inference[Any]:
        """What is computed for an input."""

    def set_line_options(self, *, tags: bool, min_score: float | None, split: str | None) -> None:
        """Take what the lines depend on, before the first one; see `--tags`, `--min_score` and `--split`.

        Raises:
            UserError: the model has no such lines.
        """
        for option, value in (("tags", tags or None), ("min_score", min_score), ("split", split)):
            if value is not None:
                raise self._unsuited(f"predict --{option}", "a tagging")

    @abstractmethod
    def stream_inputs(self, path: str) -> Iterator[Any]:
        """The inputs in a file, one a line; `-` is standard input."""

    @abstractmethod
    def prediction_header(self) -> str | None:
        """The line that names the columns, None where the lines are JSON."""

    @abstractmethod
    def prediction_line(self, source: Any, row: Any, *, tags: bool) -> str:
        """The line of an input `source` and its result `row`; `tags` adds tokens and tags, where there are any."""

    def ranked_header(self) -> str:
        """The line that names the columns of ranked lists."""
        raise self._unsuited("rank", "a reranking")

    def ranked_lines(self, sources: Sequence[Any], rows: Sequence[Any]) -> Iterator[str]:
        """The lines of ranked lists, of all inputs and their results: query by query, best candidate first."""
        raise self._unsuited("rank", "a reranking")

    # Reports of `bertorch.evaluate`

    @abstractmethod
    def read_labelled(self, path: str, on_bad_line: str) -> tuple[Any, Examples]:
        """A labelled file in the form of the script's dev data: what is written in it, and the examples.

        Raises:
            UserError: the file cannot be read, or a line is malformed.
        """

    def read_retrieval(self, files: Sequence[str], on_bad_line: str) -> tuple[Any, Examples]:
        """A corpus, queries and which passages are relevant, see `bertorch.data.retrieval.read_retrieval_files`."""
        raise self._unsuited("search", "an embedding")

    @abstractmethod
    def label_texts(self, source: Any) -> Mapping[str, Sequence[str]]:
        """The texts, or tokens, of the labels of a `source` that `read_labelled` read, by column of out_of_fold.tsv."""

    @abstractmethod
    def errors(self, metric: Any, source: Any) -> Errors:
        """The wrong examples, from `metric` after the evaluation, and the `source` that `read_labelled` read."""

    # Exports

    @abstractmethod
    def agreement(self) -> Agreement:
        """By what another model of the task is compared with this one on inputs without labels."""

    # Fitting by `bertorch.evaluate`, with a `fitting`

    def metric_to_fit(self, device: torch.device) -> Metric[B]:
        """As `metric`, but after the evaluation it has what `fit` takes."""
        return self.metric(device)

    def fit(self, metric: Any, choice: Any) -> dict[str, Any]:
        """Fit something to an evaluation, which predictions use and `settings` has from now on.

        Args:
            metric: that of `metric_to_fit`, after the evaluation.
            choice: the value of the option that asks for it, such as `macro`.

        Returns:
            For the report, what it gives on examples that it was not fitted on.

        Raises:
            UserError: the examples do not determine it.
        """
        raise NotImplementedError
