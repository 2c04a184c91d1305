"""What the problem types of `run_classifier.py` share: a classification model of transformers over texts or pairs."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar, Self, Unpack

import numpy as np
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase
from typing_extensions import override

from bertorch.config import ClassifierConfig
from bertorch.data.batch import PackedBatch
from bertorch.data.dataset import Dataset, Examples
from bertorch.data.labelled_lines import read_labelled
from bertorch.data.readers import LabelledTexts, has_pairs
from bertorch.data.texts import Columns
from bertorch.data.windowed_dataset import WindowedDataset
from bertorch.encoder import pooling
from bertorch.encoder.classifier import SequenceClassifier
from bertorch.encoder.onnx_model import OnnxModel
from bertorch.encoder.pretrained import empty_model, saved_label_names
from bertorch.tasks.base import InputSettings, LoadedFolder
from bertorch.tasks.class_losses import loss_notes, loss_record, saved_loss_record
from bertorch.tasks.scoring import ScoringTask
from bertorch.weights import load_into

Reader = Callable[..., Dataset]


def labelled_texts(
    path: str,
    *,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    label_names: Sequence[str],
    num_texts: int,
    form: str = "single_label",
    label_separator: str = ",",
    on_bad_line: str,
) -> Dataset:
    """Texts or pairs with labels; the texts of a pair are encoded together. See `read_labelled`."""
    read = read_labelled(
        path,
        form,
        label_names=label_names,
        num_texts=num_texts,
        label_separator=label_separator,
        on_bad_line=on_bad_line,
    )
    return Dataset.of_sequences(tokenizer, read.columns, read.labels, max_length=max_length)


def labelled_windows(
    path: str,
    *,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    windows: int,
    label_names: Sequence[str],
    num_texts: int,
    form: str = "single_label",
    label_separator: str = ",",
    on_bad_line: str,
) -> WindowedDataset:
    """As `labelled_texts`, but a long text is up to `windows` windows."""
    read = read_labelled(
        path,
        form,
        label_names=label_names,
        num_texts=num_texts,
        label_separator=label_separator,
        on_bad_line=on_bad_line,
    )
    return WindowedDataset.of_windows(tokenizer, read.columns, read.labels, max_length=max_length, windows=windows)


def reader(config: ClassifierConfig, **arguments: Any) -> Reader:
    """The reading function for the options, with these arguments of `labelled_texts`."""
    if config.windows == 1:
        return partial(labelled_texts, **arguments)
    return partial(labelled_windows, windows=config.windows, **arguments)


class SequenceSettings(InputSettings, total=False):
    """Keyword arguments of every problem type."""

    text_pair: bool | None
    windows: int
    loss_record: Mapping[str, Any]


class SequenceTask(ScoringTask):
    """A problem type: a model that gives logits for a text or a pair.

    Args:
        model: gives logits (N, C).
        label_names: C of them; none where the logits are no classes.
        text_pair: whether the inputs are pairs; None if that is not known, and both are taken.
        windows: that an input may have; its logits are the mean over them.
        loss_record: the options of its loss that distort probabilities, which the folder keeps.
        inputs: see `Task`.
    """

    scripts = "run_classifier.py"
    pipeline_tag = "text-classification"
    architecture = "ForSequenceClassification"
    head = "linear"
    label_separator = ","  # of several labels in a line
    problem_type: ClassVar[str]  # of `--problem_type`
    train_form: ClassVar[str]  # of the lines, as `read_labelled` names it
    dev_form: ClassVar[str]
    library_problem_type: ClassVar[str]  # transformers' name of it, which a pipeline goes by

    def __init__(
        self,
        model: SequenceClassifier | OnnxModel,
        label_names: Sequence[str] = (),
        *,
        text_pair: bool | None = False,
        windows: int = 1,
        loss_record: Mapping[str, Any] = MappingProxyType({}),
        **inputs: Unpack[InputSettings],
    ) -> None:
        super().__init__(model, **inputs)
        self.label_names = label_names
        self._text_pair = text_pair
        self.windows = windows
        self._loss_record = dict(loss_record)
        if windows > 1:  # each number of windows in a batch would be a shape of its own
            self.graph_obstacle = f"--windows {windows}"

    @classmethod
    def readers(cls, config: ClassifierConfig, label_names: Sequence[str]) -> tuple[Reader, Reader]:
        """Reading functions of training and dev data, see `bertorch.data.load.load_examples`."""
        arguments = {
            "label_names": label_names,
            "num_texts": config.num_texts,
            "label_separator": config.label_separator,
        }
        return reader(config, form=cls.train_form, **arguments), reader(config, form=cls.dev_form, **arguments)

    @classmethod
    def from_config(
        cls,
        config: ClassifierConfig,
        tokenizer: PreTrainedTokenizerBase,
        label_names: Sequence[str],
        train: Examples,
    ) -> Self:
        """Build the task that the options describe, see `from_pretrained`."""
        return cls.planned(config, tokenizer, label_names, train)()

    @classmethod
    def planned(
        cls,
        config: ClassifierConfig,
        tokenizer: PreTrainedTokenizerBase,
        label_names: Sequence[str],
        train: Examples,
    ) -> Callable[[], Self]:
        """What `from_config` does, after what depends on the training examples: their errors come at once."""
        return partial(
            cls.from_pretrained,
            config.pretrained_model_name_or_path,
            tokenizer,
            label_names,
            text_pair=config.num_texts == 2,
            max_seq_length=config.max_seq_length,
            windows=config.windows,
            loss_record=loss_record(config),
            **cls._settings_of(config, label_names, train),
        )

    @classmethod
    def _settings_of(
        cls,
        config: ClassifierConfig,  # noqa: ARG003 - for problem types with options of their own
        label_names: Sequence[str],  # noqa: ARG003
        train: Examples,  # noqa: ARG003 - how often a label occurs there
    ) -> Mapping[str, Any]:
        """The keyword arguments of the problem type that the options describe."""
        return {}

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        tokenizer: PreTrainedTokenizerBase,
        label_names: Sequence[str],
        *,
        text_pair: bool,
        max_seq_length: int,
        **settings: Any,
    ) -> Self:
        """Load a hub model or local folder with a head for these labels, or for one number without labels.

        `settings` are keyword arguments of the task.

        Raises:
            UserError: it cannot be loaded, has no classification head, or fewer positions than `max_seq_length`.
        """
        model = SequenceClassifier.from_pretrained(name, label_names or ["score"], cls.library_problem_type)
        model.encoder.require_positions(max_seq_length)
        settings |= {"tokenizer": tokenizer, "max_seq_length": max_seq_length}
        return cls(model, label_names, text_pair=text_pair, **settings)

    @classmethod
    @override
    def from_folder(cls, loaded: LoadedFolder) -> Self:
        model = loaded.graph or SequenceClassifier(
            empty_model(AutoModelForSequenceClassification, loaded.config, loaded.folder)
        )
        load_into(model.weights, loaded.weights, model.encoder_prefix, loaded.folder)
        text_pair = loaded.metadata.setting("text_pair", (None, False, True), loaded.folder)
        windows = loaded.metadata.size("windows", loaded.folder) or 1
        shared: SequenceSettings = {"text_pair": text_pair, "windows": windows, **loaded.inputs}  # type: ignore[typeddict-item]
        shared["loss_record"] = saved_loss_record(loaded.metadata.settings, loaded.folder)
        return cls(model, cls._saved_labels(loaded), **shared, **cls._saved_settings(loaded))

    @classmethod
    def _saved_labels(cls, loaded: LoadedFolder) -> Sequence[str]:
        return saved_label_names(loaded.config, loaded.folder)

    @classmethod
    def _saved_settings(cls, loaded: LoadedFolder) -> Mapping[str, Any]:  # noqa: ARG003
        """The keyword arguments of the problem type that a folder holds."""
        return {}

    @override
    def settings(self) -> Mapping[str, Any]:
        windows = {} if self.windows == 1 else {"windows": self.windows}  # folders without are as before
        return {"text_pair": self._text_pair, **windows, **({"loss": self._loss_record} if self._loss_record else {})}

    @override
    def notes(self) -> Sequence[str]:
        return loss_notes(self._loss_record)

    @override
    def outputs(self, batch: PackedBatch) -> Tensor:
        """Logits (inputs, C), of an input with windows the mean over them."""
        logits = super().outputs(batch)  # (N, C)
        if batch.window_counts is None:
            return logits
        assert self.windows > 1, "the examples have windows, and the folder would not know"
        return pooling.mean_over_windows(logits, batch.window_counts)

    @property
    @override
    def num_texts(self) -> int:
        return 0 if self._text_pair is None else 1 + self._text_pair

    @override
    def _tokenized(self, columns: Columns, labels: np.ndarray) -> Dataset:
        if self.windows == 1:
            return Dataset.of_sequences(self.tokenizer, columns, labels, max_length=self.max_seq_length)
        return WindowedDataset.of_windows(
            self.tokenizer, columns, labels, max_length=self.max_seq_length, windows=self.windows
        )

    @override
    def _scores(self, batch: PackedBatch) -> Tensor:
        return self.probabilities(self.outputs(batch).float())

    def probabilities(self, logits: Tensor) -> Tensor:
        """What is predicted, from logits (N, C): the logits themselves if they are no classes."""
        return logits

    @override
    def _read(self, path: str, on_bad_line: str) -> LabelledTexts:
        num_texts = self.num_texts or 1 + has_pairs(path)
        return read_labelled(
            path,
            self.dev_form,
            label_names=self.label_names,
            num_texts=num_texts,
            label_separator=self.label_separator,
            on_bad_line=on_bad_line,
        )

    @override
    def usage(self) -> tuple[str, str]:
        first, second = "房间干净，早餐也丰富。", "早餐不错。"
        ours, theirs = ((first, second), {"text": first, "text_pair": second}) if self._text_pair else (first, first)
        elsewhere = f"from transformers import pipeline\n\n{self._differences}"
        elsewhere += f'print(pipeline("{self.pipeline_tag}", model={{folder}})({theirs!r}))'
        return f"predict([{ours!r}])[0].{'label' if self.label_names else 'score'}", elsewhere

    @property
    def _differences(self) -> str:
        """Comments on what other programs do otherwise, a line each."""
        return "" if self.windows == 1 else f"# truncates a text that bertorch cuts into up to {self.windows} windows\n"
