"""The options that the scripts share: name, default, meaning, bounds and group of each, declared once.

A script or command adds options by deriving a dataclass; `bertorch.cli` turns the fields into argparse options.
"""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field
from functools import partial
from typing import Any, Literal, TypeVar, get_args

from typing_extensions import override

from bertorch.errors import UserError

SCHEDULERS = ("linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
SPLITS = ("characters", "words")
CUDA_GRAPHS = ("auto", "off")
BACKENDS = ("torch", "onnx", "onnx-int8")
COMPILE = ("auto", "on", "off")
LONGEST = 100_000  # tokens of an example, more than any model takes
ON_BAD_LINE = ("stop", "skip")
POOLING_MODES = ("linear", "cls", "mean")
PROBLEM_TYPES = ("single_label", "multi_label", "score", "ranking")
AVERAGES = ("macro", "micro")
MULTI_LABEL_LOSSES = ("bce", "zlpr")
SAVE_FORMATS = ("bin", "safetensors", "both")
CLASS_WEIGHTS = ("none", "balanced", "effective")
EMBEDDING_LOSSES = ("in_batch_negatives", "cosent", "cosine_mse")
MIXES = ("proportional", "equal")
ENTITY_HEADS = ("linear", "crf", "global_pointer")  # as in `bertorch.tasks.tagging`, which imports torch
DECODINGS = ("flat", "nested")
PROMPT_ROLES = ("query", "passage", "none")

T = TypeVar("T")

# Headings of `--help`, in its order.
Group = Literal["options", "data", "optimisation", "evaluation and saving", "speed"]
GROUPS: tuple[Group, ...] = get_args(Group)


def option(
    default: Any = MISSING,
    *,
    help: str,  # noqa: A002 - argparse's own name
    group: Group = "options",
    choices: tuple[Any, ...] | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    aliases: tuple[str, ...] = (),
    positional: bool = False,
    metavar: str | None = None,
    is_input: bool = False,
    shapes_result: bool = True,
    is_later: bool = False,
) -> Any:
    """Declare one command-line option as a dataclass field.

    The field's type is the option's: `bool` is a flag, `tuple[X, ...]` takes several values and may be repeated.

    Args:
        default: without one the option is required.
        help, group, choices, metavar: as in `--help`.
        minimum, maximum: inclusive bounds of a number.
        aliases: further spellings, such as `--local-rank`.
        positional: an argument without dashes.
        is_input: a file whose content shapes the result of the run, whatever its name.
        shapes_result: two runs that differ in it are different runs.
        is_later: runs from before it have its default; so the record of a run has it only with another value.
    """
    return field(default=default, metadata={name: value for name, value in locals().items() if name != "default"})


_data = partial(option, group="data")
_optimisation = partial(option, group="optimisation")
_saving = partial(option, group="evaluation and saving", shapes_result=False)
_speed = partial(option, group="speed", shapes_result=False)


def _is_changed(config: Any, name: str) -> bool:
    """Whether an option has another value than its default."""
    return bool(getattr(config, name) != type(config).__dataclass_fields__[name].default)


@dataclass(frozen=True, kw_only=True)
class LaunchedConfig:
    """The options of everything that a launcher can start in several processes."""

    local_rank: int = option(-1, aliases=("--local-rank",), shapes_result=False, help="set by the launcher")

    threads: int | None = _speed(
        None,
        minimum=1,
        maximum=1024,
        help="threads of each process on the CPU; by default the processes share all cores",
    )


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(LaunchedConfig):
    """The options of every script; those that contradict each other raise a `UserError`."""

    train_data_file: str = option(is_input=True, help="training examples, one per line")
    dev_data_file: str | None = option(None, is_input=True, help="dev examples; no evaluation without them")
    pretrained_model_name_or_path: str = option("bert-base-chinese", help="hub name or local folder of the encoder")
    init_from_ckpt: str | None = option(None, help="weights to start from: .bin, .safetensors, or a folder with one")
    saved_dir: str = option("./checkpoint", shapes_result=False, help="folder for weights, config and tokenizer")
    max_seq_length: int = option(
        128,
        minimum=3,
        maximum=LONGEST,
        help="tokens per example, with [CLS] and [SEP]; longer ones are truncated (tagging: windows)",
    )
    batch_size: int = option(32, minimum=1, help="examples per batch and process")
    epochs: int = option(3, minimum=1, help="passes over the training examples")
    learning_rate: float = option(5e-5, minimum=0.0, help="peak learning rate of AdamW")
    scheduler: str = option("linear", choices=SCHEDULERS, help="learning-rate schedule after the warm-up")
    warmup_proportion: float = option(
        0.0,
        minimum=0.0,
        maximum=1.0,
        help="share of all steps over which the rate rises from 0 to its peak, rounded up to whole steps",
    )
    weight_decay: float = option(0.0, minimum=0.0, help="decoupled; not for biases and normalisation weights")
    max_grad_norm: float = option(1.0, minimum=0.0, help="clip gradients to this global norm; 0 disables clipping")
    seed: int = option(1000, minimum=0, help="seed of new weights, the order of the examples and dropout")
    logging_steps: int = option(20, minimum=1, shapes_result=False, help="steps between two log lines")
    save_steps: int = option(
        100, minimum=1, shapes_result=False, help="steps between two evaluations and saves; always after the last step"
    )
    save_best_model: bool = option(False, help="save only when the dev metric improves")

    dev_ratio: float | None = _data(
        None,
        help="share of the training examples, drawn by --seed, to evaluate on instead of a dev file; "
        "dev_examples.json in --saved_dir says which",
    )
    on_bad_line: str = _data(
        "stop", choices=ON_BAD_LINE, help="malformed lines: stop before training, or skip and count them"
    )
    cache_dir: str | None = _data(
        None, shapes_result=False, help="keep tokenised files here, memory-mapped by all processes; for large data"
    )

    new_head: bool = _optimisation(
        False, help="leave out the head of --init_from_ckpt, which had other labels or was another script's"
    )
    gradient_accumulation_steps: int = _optimisation(1, minimum=1, help="batches per optimisation step")
    max_steps: int | None = _optimisation(
        None, minimum=1, help="stop after this many steps; the schedule spans the smaller of this and all steps"
    )
    deterministic: bool = _optimisation(
        False, shapes_result=False, help="bitwise reproducible on a GPU too, but slower; on a CPU runs always are"
    )
    adversarial_epsilon: float | None = _optimisation(
        None,
        is_later=True,
        help="also train on word embeddings moved this far along their gradient (FGM), such as 1.0; twice the time",
    )
    ema_decay: float | None = _optimisation(
        None,
        is_later=True,
        help="evaluate and save an exponential moving average of the weights with this decay, such as 0.999",
    )

    r_drop: float | None = _optimisation(
        None,
        minimum=0.0,
        is_later=True,
        help="R-Drop: each example under two dropouts; the divergence of both predictions counts this much in the loss",
    )
    layer_decay: float | None = _optimisation(
        None,
        maximum=1.0,
        is_later=True,
        help="factor on the learning rate from each layer of the encoder to the one below, such as 0.9",
    )
    freeze_layers: int | None = _optimisation(
        None, minimum=0, is_later=True, help="keep the embeddings and this many of the first layers as they are"
    )
    layers_from: str | None = _optimisation(
        None, is_later=True, help="start with these layers alone of the pretrained encoder, from 0, such as 0,2,4"
    )

    eval_steps: int | None = _saving(
        None, minimum=1, help="steps between two evaluations; by default --save_steps; always after the last step"
    )
    patience: int | None = _saving(
        None, minimum=1, shapes_result=True, help="stop after this many evaluations in a row without a better metric"
    )
    resume: bool = _saving(False, help="continue from the newest checkpoint in --saved_dir, if there is one")
    overwrite: bool = _saving(False, help="start anew and replace what another run left in --saved_dir")
    save_interval: float = _saving(
        30.0, minimum=0.0, help="seconds between two regular saves, at least; 0 saves after each --save_steps"
    )
    save_format: str = _saving(
        "bin",
        choices=SAVE_FORMATS,
        help="of the weights: pytorch_model.bin, model.safetensors as the hub wants it, or both of them",
    )
    keep_checkpoints: int = _saving(1, minimum=0, help="checkpoints to keep for --resume; 0 keeps none")
    tensorboard_dir: str | None = _saving(
        None, help="also write the numbers of metrics.jsonl here for TensorBoard; needs tensorboard"
    )

    precision: str = _speed(
        "auto",
        choices=PRECISIONS,
        shapes_result=True,
        help="of the arithmetic; auto: bf16 on a GPU that supports it, else fp32",
    )
    cuda_graphs: str = _speed(
        "auto", choices=CUDA_GRAPHS, help="auto: replay whole steps as CUDA graphs on one GPU where possible"
    )
    compile: str = _speed(
        "auto", choices=COMPILE, help="torch.compile the encoder; auto: on a GPU, for long runs of CUDA graphs"
    )
    gradient_checkpointing: bool = _speed(
        False, help="recompute the encoder's activations in the backward pass: less memory, same gradients, slower"
    )

    def __post_init__(self) -> None:
        if self.saved_dir.encode(errors="replace").decode() != self.saved_dir:
            raise UserError(f"--saved_dir: expected a name in UTF-8, which tokenizers need, got {self.saved_dir!r}")
        if self.resume and self.overwrite:
            raise UserError("--resume continues what --overwrite replaces; choose one of them")
        if self.new_head and self.init_from_ckpt is None:
            raise UserError("--new_head leaves out the head of --init_from_ckpt, got no --init_from_ckpt")
        if self.dev_ratio is not None and not 0 < self.dev_ratio < 1:
            raise UserError(f"--dev_ratio: expected a share between 0 and 1, such as 0.1, got {self.dev_ratio:g}")
        if self.dev_ratio is not None and self.dev_data_file is not None:
            raise UserError("--dev_ratio and --dev_data_file both name the dev examples; choose one of them")
        if self.adversarial_epsilon is not None and self.adversarial_epsilon <= 0:
            raise UserError(
                f"--adversarial_epsilon: expected a length above 0, such as 1.0, got {self.adversarial_epsilon:g}; "
                "without the option there is no adversarial training"
            )
        if self.adversarial_epsilon is not None and self.freeze_layers is not None:
            raise UserError(
                "--adversarial_epsilon moves word embeddings along their gradient, and --freeze_layers freezes them; "
                "choose one of them"
            )
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise UserError(f"--ema_decay: expected a decay between 0 and 1, such as 0.999, got {self.ema_decay:g}")
        if self.layer_decay is not None and self.layer_decay <= 0:
            raise UserError(f"--layer_decay: expected more than 0, such as 0.9, got {self.layer_decay:g}")
        if self.layers_from is not None and self.init_from_ckpt is not None:
            raise UserError(
                "--layers_from takes layers of --pretrained_model_name_or_path, which --init_from_ckpt would replace; "
                "choose one of them, or name the folder of that checkpoint as --pretrained_model_name_or_path"
            )
        self.kept_layers  # noqa: B018 - raises
        for is_set, use in (
            (self.save_best_model, "--save_best_model compares dev metrics"),
            (self.patience is not None, "--patience counts evaluations"),
            (self.eval_steps is not None, "--eval_steps is for evaluations"),
        ):
            if is_set and not self.has_dev_examples:
                raise UserError(f"{use} and needs --dev_data_file or --dev_ratio; got neither")

    @property
    def train_data_files(self) -> tuple[str, ...]:
        """The files of training examples; a batch has those of one."""
        return (self.train_data_file,)

    @property
    def mix_of_files(self) -> str:
        """How the batches of several files are mixed."""
        return MIXES[0]

    @property
    def kept_layers(self) -> tuple[int, ...] | None:
        """The numbers in `--layers_from`; a `UserError` if they are none, or do not rise."""
        if self.layers_from is None:
            return None
        layers = _listed("layers_from", self.layers_from, int, "0,2,4")
        if layers[0] < 0 or list(layers) != sorted(set(layers)):
            raise UserError(f"--layers_from: expected numbers of layers that rise from 0 on, got {self.layers_from}")
        return layers

    @property
    def has_dev_examples(self) -> bool:
        """Whether the run evaluates."""
        return self.dev_data_file is not None or self.dev_ratio is not None

    @property
    def evaluation_steps(self) -> int:
        """Steps between evaluations."""
        return self.save_steps if self.eval_steps is None else self.eval_steps


@dataclass(frozen=True, kw_only=True)
class FoldsConfig(TrainingConfig):
    """The options of every script whose examples can be predicted one by one."""

    folds: int | None = _data(
        None,
        minimum=2,
        maximum=1000,
        is_later=True,
        help="train this many models in --saved_dir/fold-1…, each without a part of the training examples, which it "
        "then predicts: out_of_fold.tsv",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.folds is None:
            return
        for is_set, other in ((self.dev_data_file is not None, "data_file"), (self.dev_ratio is not None, "ratio")):
            if is_set:
                raise UserError(
                    f"--folds and --dev_{other}: each model of --folds is evaluated on the part that it has not seen; "
                    "choose one of them"
                )
        if len(self.train_data_files) > 1:
            raise UserError("--folds splits the examples of one file, got --more_train_data_files; choose one of them")

    @property
    @override
    def has_dev_examples(self) -> bool:
        return self.folds is not None or super().has_dev_examples


@dataclass(frozen=True, kw_only=True)
class TeacherConfig(TrainingConfig):
    """The options of every script that can learn from what a larger model gives for its training examples."""

    teacher: str | None = _optimisation(
        None,
        is_input=True,
        is_later=True,
        help="a .npy file of predict --logits, for classes, or of encode, for vectors: what to imitate, for each line "
        "of --train_data_file",
    )
    teacher_weight: float = _optimisation(
        0.5,
        minimum=0.0,
        maximum=1.0,
        is_later=True,
        help="of the distance from the --teacher; the loss of the labels or pairs weighs the rest",
    )
    teacher_temperature: float = _optimisation(
        2.0, is_later=True, help="by which the logits of --teacher and model are divided before they are compared"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.teacher is not None and self.on_bad_line == "skip":
            raise UserError("--teacher has a row for each line, and --on_bad_line skip leaves lines out; fix the lines")
        if self.teacher is not None and len(self.train_data_files) > 1:
            raise UserError(
                "--teacher has the rows of one file, --train_data_file, got --more_train_data_files too; join the "
                "files to one, or leave one of the options out"
            )
        if self.teacher_temperature <= 0:
            raise UserError(f"--teacher_temperature: expected more than 0, got {self.teacher_temperature:g}")
        for name in ("teacher_weight", "teacher_temperature"):
            if self.teacher is None and getattr(self, name) != getattr(TeacherConfig, name):
                raise UserError(f"--{name} is for --teacher, got no --teacher")

    @property
    def num_texts(self) -> int | None:
        """How many columns of a training line are texts, from the first on; None: all, and the lines are no JSON."""
        return None


@dataclass(frozen=True, kw_only=True)
class InferenceConfig(LaunchedConfig):
    """The options of every command that uses a trained model."""

    model_dir: str = option(help="--saved_dir of a run of any of the five scripts, or another folder that load takes")
    batch_size: int = option(32, minimum=1, help="inputs of a batch; on a GPU they are more")
    precision: str = option(
        "auto", choices=PRECISIONS, help="of the arithmetic; auto is half precision on a GPU, fp32 on the CPU"
    )
    max_seq_length: int | None = option(
        None, minimum=3, maximum=LONGEST, help="tokens of an input; by default as many as in training"
    )
    overwrite: bool = option(False, help="replace the output if it exists")
    backend: str = option(
        BACKENDS[0],
        choices=BACKENDS,
        help="what runs the model: torch, or ONNX Runtime on the CPU with what bertorch.export made; see docs",
    )

    def __post_init__(self) -> None:
        if self.backend != BACKENDS[0] and self.precision not in ("auto", "fp32"):
            raise UserError(
                f"--precision {self.precision} is for --backend {BACKENDS[0]}: a graph has the precision that it was "
                "exported with; leave it out"
            )


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig(TeacherConfig, FoldsConfig):
    """The options of `run_classifier.py`."""

    label_file: str | None = option(
        None, is_input=True, help="one label a line; its line number from 0 is its id; needed where there are labels"
    )
    is_text_pair: bool = option(False, help="lines are a⇥b⇥label, not text⇥label")
    problem_type: str = option(
        "single_label",
        choices=PROBLEM_TYPES,
        is_later=True,
        help="single_label: one label a text; multi_label: several or none, with --label_separator between them; "
        "score: a number; ranking: query⇥positive⇥negative…, see docs",
    )
    multi_label_loss: str = option(
        MULTI_LABEL_LOSSES[0],
        choices=MULTI_LABEL_LOSSES,
        is_later=True,
        help="multi_label: bce: binary cross-entropy of each label; zlpr: each label against all of the other kind",
    )
    label_separator: str = option(",", is_later=True, help="multi_label: stands between the labels of a text")

    class_weights: str = _optimisation(
        CLASS_WEIGHTS[0],
        is_input=True,
        is_later=True,
        help="weights of the classes in the loss: none, balanced, effective, or a file of label⇥weight",
    )
    label_smoothing: float = _optimisation(
        0.0, minimum=0.0, maximum=0.99, is_later=True, help="share of the target that all classes have alike"
    )
    focal_gamma: float = _optimisation(
        0.0,
        minimum=0.0,
        maximum=100.0,
        is_later=True,
        help="of the focal loss, where sure examples weigh less; 0: off",
    )
    logit_adjustment: float = _optimisation(
        0.0,
        minimum=0.0,
        maximum=100.0,
        is_later=True,
        help="factor on the logarithm of the classes' shares, added to the logits in training alone; usually 1; 0: off",
    )
    windows: int = _data(
        1,
        minimum=1,
        is_later=True,
        help="windows of --max_seq_length tokens that a longer text may have; its logits are their mean",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.has_labels and self.label_file is None:
            raise UserError(f"--problem_type {self.problem_type} needs --label_file with its labels, one a line")
        if not self.has_labels and self.label_file is not None:
            raise UserError(f"--problem_type {self.problem_type} has no labels; leave out --label_file")
        if self.problem_type != "multi_label":
            for name in ("multi_label_loss", "label_separator"):
                if _is_changed(self, name):
                    raise UserError(f"--{name} is for --problem_type multi_label, got {self.problem_type}")
        if not self.label_separator.isprintable():
            raise UserError(f"--label_separator: expected printable characters, got {self.label_separator!r}")
        if self.problem_type == "ranking" and self.dev_ratio is not None:
            raise UserError(
                "--dev_ratio splits training examples, which have another form than dev lines with --problem_type "
                "ranking; name a file of query⇥candidate⇥relevance with --dev_data_file"
            )
        if self.folds is not None and self.problem_type != "single_label":
            raise UserError(
                "--folds writes probabilities of classes that exclude each other, which --problem_type "
                f"{self.problem_type} does not have; leave it out"
            )
        _check_class_losses(self)
        if self.r_drop is not None and self.problem_type != "single_label":
            raise UserError(
                "--r_drop compares what is predicted of classes that exclude each other, which --problem_type "
                f"{self.problem_type} does not have"
            )

        if self.teacher is not None and self.problem_type != "single_label":
            raise UserError(
                "--teacher is compared in what it says of classes that exclude each other, which --problem_type "
                f"{self.problem_type} does not have; leave it out"
            )

    @property
    def has_labels(self) -> bool:
        """Whether texts have labels of a closed set."""
        return self.problem_type in ("single_label", "multi_label")

    @property
    @override
    def num_texts(self) -> int:
        return 2 if self.is_text_pair or self.problem_type == "ranking" else 1


_NOT_TOGETHER = (
    ("class_weights", "logit_adjustment", "both make up for unequal classes, and would do it twice"),
    ("label_smoothing", "logit_adjustment", "smoothed targets no longer have the classes' shares"),
    ("label_smoothing", "focal_gamma", "the focal loss looks at the right class alone, and smoothing at all"),
    ("focal_gamma", "logit_adjustment", "the adjustment is right for cross-entropy alone"),
)


def _check_class_losses(config: ClassifierConfig) -> None:
    """Raise a `UserError` for options of the loss that make no sense together or with the problem type."""
    problem, names = config.problem_type, ("label_smoothing", "focal_gamma", "logit_adjustment")
    used = [*(["class_weights"] if config.class_weights != "none" else []), *(n for n in names if getattr(config, n))]
    for first, second, reason in _NOT_TOGETHER:
        if first in used and second in used:
            raise UserError(f"--{first} and --{second}: {reason}; choose one of them")
    if not config.has_labels and used:
        raise UserError(f"--{used[0]} is for classes, and --problem_type {problem} has none; leave it out")
    if problem == "multi_label" and (used[1:] or (used and config.class_weights != "balanced")):
        got = f"--{used[-1]} {getattr(config, used[-1])}"
        raise UserError(f"--problem_type multi_label has only --class_weights balanced, got {got}; leave it out")
    if problem == "multi_label" and used and config.multi_label_loss == "zlpr":
        raise UserError("--class_weights is for --multi_label_loss bce: zlpr compares labels, which count alike")


@dataclass(frozen=True, kw_only=True)
class EmbeddingConfig(TeacherConfig):
    """The options of every script that trains sentence embeddings."""

    pooling_mode: str = option(
        "linear",
        choices=POOLING_MODES,
        help="linear: the encoder's pooler over [CLS]; cls: hidden state of [CLS]; mean: of all tokens",
    )
    output_emb_size: int | None = option(
        None, minimum=1, help="dimensions of a linear layer after pooling; without it the encoder's width"
    )
    more_train_data_files: tuple[str, ...] = _data(
        (), is_input=True, is_later=True, help="more training examples; a batch has those of one file"
    )
    mix: str = _data(
        MIXES[0],
        choices=MIXES,
        is_later=True,
        help="proportional: an epoch has each example of all files once; equal: as many batches of each file as the "
        "one with the most has",
    )
    matryoshka: str | None = _optimisation(
        None,
        is_later=True,
        help="mean of the loss over these first dimensions of the embeddings, such as 768,512,256,128,64, and all",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        widths, size = self.matryoshka_widths, self.output_emb_size
        if len(set(widths)) < len(widths) or any(width < 1 for width in widths):
            raise UserError(f"--matryoshka: expected different numbers from 1 on, got {self.matryoshka}")
        if size is not None and max(widths, default=0) > size:
            raise UserError(f"--matryoshka: expected at most the {size} of --output_emb_size, got {max(widths)}")
        if not self.more_train_data_files and self.mix != MIXES[0]:
            raise UserError(f"--mix {self.mix} is for several files, got no --more_train_data_files")
        if twice := [name for name, count in Counter(self.train_data_files).items() if count > 1]:
            raise UserError(f"--more_train_data_files: expected each training file once, got {twice[0]} again")
        if self.more_train_data_files and self.dev_ratio is not None:
            raise UserError(
                "--dev_ratio draws dev examples from one file, got --more_train_data_files; name a dev file with "
                "--dev_data_file"
            )

    @property
    def matryoshka_widths(self) -> tuple[int, ...]:
        """The dimensions that `--matryoshka` names; none without it."""
        return () if self.matryoshka is None else _listed("matryoshka", self.matryoshka, int, "768,512,256,128,64")

    @property
    @override
    def train_data_files(self) -> tuple[str, ...]:
        return (self.train_data_file, *self.more_train_data_files)

    @property
    @override
    def mix_of_files(self) -> str:
        return self.mix


def _listed(name: str, text: str, kind: Callable[[str], T], sample: str) -> tuple[T, ...]:
    """The values in a list with commas, of the option with this name."""
    try:
        return tuple(map(kind, text.split(",")))
    except ValueError as error:
        expected = f"expected numbers with commas between them, such as {sample}"
        raise UserError(f"--{name}: {expected}, got {text!r}") from error


@dataclass(frozen=True, kw_only=True)
class ContrastiveConfig(EmbeddingConfig):
    """The options of every script that learns from in-batch negatives."""

    margin: float = option(0.2, help="subtracted from the cosine of a positive pair")
    scale: float = option(20.0, minimum=0.0, help="factor on the cosines, the inverse of the temperature")
    gather_negatives: bool = _optimisation(False, help="negatives from all processes, with gradient")
    keep_duplicates: bool = _optimisation(False, help="rows that share a text also count as negatives of each other")
    micro_batch_size: int | None = _speed(
        None, minimum=1, shapes_result=True, help="rows to encode at once: less memory, the gradients of a large batch"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.r_drop is not None:
            raise UserError(
                "--r_drop compares probabilities of classes, which sentence embeddings do not have; two dropouts of a "
                "sentence are what run_simcse.py learns from"
            )
        if self.teacher_temperature != TeacherConfig.teacher_temperature:
            raise UserError(
                "--teacher_temperature is for the logits of classes; vectors are compared without; leave it out"
            )
        if self.dev_ratio is not None and not self.has_scores:
            raise UserError(
                "--dev_ratio splits training examples, which have no score to evaluate on; name a file of scored pairs "
                "with --dev_data_file"
            )

    @property
    def has_scores(self) -> bool:
        """Whether the training examples have scores."""
        return False


# The options of each loss that others do not have.
_LOSS_OPTIONS = {
    "in_batch_negatives": ("margin", "scale", "mean_loss", "keep_duplicates"),
    "cosent": ("scale",),
    "cosine_mse": ("score_range",),
}


@dataclass(frozen=True, kw_only=True)
class BatchNegConfig(ContrastiveConfig):
    """The options of `run_batchneg.py`."""

    loss: str = option(
        EMBEDDING_LOSSES[0],
        choices=EMBEDDING_LOSSES,
        is_later=True,
        help="in_batch_negatives: lines are anchor⇥positive; cosent: a⇥b⇥score, the order of the cosines is learned; "
        "cosine_mse: a⇥b⇥score, the cosine itself is",
    )
    mean_loss: bool = option(False, help="the mean of the losses of rows (a finds its b) and columns (b finds its a)")
    score_range: str = option(
        "0,1",
        is_later=True,
        help="cosine_mse: lowest and highest score of the training file, such as 0,5; they are scaled to 0 to 1",
    )
    query_prompt: str | None = _data(
        None, is_later=True, help="stands before each query, the first text of a line, such as 'query: '"
    )
    passage_prompt: str | None = _data(
        None, is_later=True, help="stands before each passage, any other text of a line, such as 'passage: '"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in dict.fromkeys(name for names in _LOSS_OPTIONS.values() for name in names):
            if _is_changed(self, name) and name not in _LOSS_OPTIONS[self.loss]:
                suited = " or ".join(loss for loss, names in _LOSS_OPTIONS.items() if name in names)
                raise UserError(f"--{name} is for --loss {suited}, got {self.loss}; leave it out")
        low, high = self.score_bounds
        if not low < high:
            raise UserError(f"--score_range: expected a lower and a higher score, got {self.score_range}")

    @property
    @override
    def has_scores(self) -> bool:
        return self.loss != EMBEDDING_LOSSES[0]

    @property
    @override
    def num_texts(self) -> int | None:
        return 2 if self.has_scores else None

    @property
    def score_bounds(self) -> tuple[float, float]:
        """Lowest and highest score; a `UserError` if they are not two finite numbers."""
        bounds = _listed("score_range", self.score_range, float, "0,5")
        if len(bounds) != 2 or not all(map(math.isfinite, bounds)):
            raise UserError(f"--score_range: expected two numbers, such as 0,5, got {self.score_range}")
        return bounds[0], bounds[1]


# What a head without tags cannot have, by option.
_OF_TAGS = {
    "folds": "writes the probability of each tag of a word",
    "r_drop": "compares the probabilities of the tags of a word",
}


class DefaultRate(float):
    """The default of a rate: equal to the same number on the command line, but told from it."""


@dataclass(frozen=True, kw_only=True)
class NERConfig(FoldsConfig):
    """The options of `run_ner.py`."""

    label_file: str = option(is_input=True, help="one tag, or one type of entities, a line")
    tag: str = option("bios", choices=("bios", "bio", "bioes"), help="the tag scheme; bioes also reads BMES")
    head: str | None = option(
        None,
        choices=ENTITY_HEADS,
        is_later=True,
        help="linear: tags, each word by itself (the default); crf: as --use_crf; global_pointer: spans, which "
        "may overlap",
    )
    use_crf: bool = option(False, help="a linear-chain CRF over the emissions")
    crf_learning_rate: float = option(
        DefaultRate(5e-5),
        minimum=0.0,
        help="peak rate of the CRF and of the linear layer under it; of a global pointer only if given, else it has "
        "--learning_rate",
    )
    head_size: int = option(
        64, minimum=2, maximum=4096, is_later=True, help="of a global pointer: dimensions of its queries and keys, even"
    )
    decoding: str = option(
        "auto",
        choices=("auto", *DECODINGS),
        is_later=True,
        help="of a global pointer: nested takes all spans with a score above 0, flat the best of those that overlap; "
        "auto: flat if no entities of the training data overlap",
    )
    split: str = _data(
        SPLITS[0],
        choices=SPLITS,
        is_later=True,
        help="what tokens are, and how texts that are no lists are cut: characters, or words and single "
        "Chinese characters",
    )
    constrain_crf: bool = option(False, group="optimisation", help="the CRF obeys the tag scheme in training too")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.use_crf and self.head not in (None, "crf"):
            raise UserError(f"--use_crf means --head crf, got --head {self.head}; leave one of them out")
        # Both ways to name a head are one, also in the record of a run.
        self._set(use_crf=self.head_name == "crf", head=self.head if self.head_name == "global_pointer" else None)
        if self.constrain_crf and not self.use_crf:
            raise UserError("--constrain_crf needs --use_crf, which is --head crf")
        if self.folds is not None and self.constrain_crf and self.on_bad_line == "skip":
            raise UserError(
                "--folds, --constrain_crf and --on_bad_line skip: sentences whose tags break the scheme would be left "
                "out, and out_of_fold.tsv has all sentences; choose two of them"
            )
        if self.head is None:
            for name in ("head_size", "decoding"):
                if _is_changed(self, name):
                    raise UserError(f"--{name} is for --head global_pointer, got {self.head_name}; leave it out")
            return
        if self.head_size % 2:
            raise UserError(
                f"--head_size: expected an even number, as rotary positions turn pairs, got {self.head_size}"
            )
        for name, use in _OF_TAGS.items():
            if getattr(self, name) is not None:
                raise UserError(f"--{name} {use}, which --head {self.head} does not have; take another head")
        if not self.gives_head_rate:
            self._set(crf_learning_rate=self.learning_rate)

    @property
    def head_name(self) -> str:
        """The head, whichever option named it."""
        return self.head or ("crf" if self.use_crf else "linear")

    @property
    def gives_head_rate(self) -> bool:
        """Whether the head has a rate that was given, or of a global pointer that of the encoder."""
        return not isinstance(self.crf_learning_rate, DefaultRate)

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)
