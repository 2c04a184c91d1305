"""Every option that the scripts share: its name, default, meaning and bounds, each declared once.

A script adds its own options by deriving from `TrainingConfig`; `bertorch.cli` turns the fields into argparse options.
"""

from dataclasses import MISSING, dataclass, field
from typing import Any

from bertorch.errors import UserError

SCHEDULERS = ("linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
CUDA_GRAPHS = ("auto", "off")
COMPILE = ("auto", "on", "off")
ON_BAD_LINE = ("stop", "skip")
POOLING_MODES = ("linear", "cls", "mean")


def option(
    default: Any = MISSING,
    *,
    help: str,  # noqa: A002 - argparse's own name
    choices: tuple[str, ...] | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    aliases: tuple[str, ...] = (),
    is_input: bool = False,
    shapes_result: bool = True,
) -> Any:
    """Declare one command-line option as a dataclass field.

    Args:
        default: the option's default; without one the option is required.
        help: one line for `--help`.
        choices: the values allowed.
        minimum, maximum: inclusive bounds of a number.
        aliases: further spellings, such as `--local-rank`.
        is_input: a file whose content shapes the result of the run, whatever its name.
        shapes_result: two runs that differ in it are different runs.
    """
    metadata = {
        "help": help,
        "choices": choices,
        "minimum": minimum,
        "maximum": maximum,
        "aliases": aliases,
        "is_input": is_input,
        "shapes_result": shapes_result,
    }
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class LaunchedConfig:
    """The options of everything that a launcher can start in several processes."""

    local_rank: int = option(-1, aliases=("--local-rank",), shapes_result=False, help="set by the launcher")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(LaunchedConfig):
    """The options of every script.

    Raises:
        UserError: two options that contradict each other.
    """

    train_data_file: str = option(is_input=True, help="training examples")
    dev_data_file: str | None = option(None, is_input=True, help="dev examples; no evaluation without them")
    dev_ratio: float | None = option(
        None, help="without a dev file: this share of the training examples, drawn by --seed, is for evaluation instead"
    )
    pretrained_model_name_or_path: str = option("bert-base-chinese", help="hub name or local folder of the encoder")
    init_from_ckpt: str | None = option(
        None, help="weights to warm-start from: a .bin or .safetensors file, or the folder of one"
    )
    saved_dir: str = option(
        "./checkpoint", shapes_result=False, help="where weights, config.json and the tokenizer's files are saved"
    )
    resume: bool = option(
        False, shapes_result=False, help="go on from the newest checkpoint in --saved_dir; start if there is none yet"
    )
    overwrite: bool = option(False, shapes_result=False, help="start anew and replace what --saved_dir holds")
    keep_checkpoints: int = option(
        1, minimum=0, shapes_result=False, help="checkpoints to go on from that are kept; 0 keeps none"
    )
    max_seq_length: int = option(128, minimum=3, help="tokens of an example with [CLS] and [SEP]; longer ones are cut")
    on_bad_line: str = option(
        "stop", choices=ON_BAD_LINE, help="a malformed line stops the run before training, or is dropped and counted"
    )
    cache_dir: str | None = option(
        None,
        shapes_result=False,
        help="folder of tokenised files: each is made once, for all processes and runs, and mapped into memory",
    )

    batch_size: int = option(32, minimum=1, help="examples a step, per process")
    gradient_accumulation_steps: int = option(1, minimum=1, help="batches of one optimisation step")
    epochs: int = option(3, minimum=1, help="passes over the training examples")
    max_steps: int | None = option(
        None,
        minimum=1,
        help="end after so many steps if the epochs have more; the learning-rate schedule then spans these steps",
    )
    learning_rate: float = option(5e-5, minimum=0.0, help="peak rate of AdamW")
    scheduler: str = option("linear", choices=SCHEDULERS, help="how the rate goes after the warm-up")
    warmup_proportion: float = option(
        0.0, minimum=0.0, maximum=1.0, help="share of all steps in which the rate climbs from 0 to the peak"
    )
    weight_decay: float = option(0.0, minimum=0.0, help="decoupled decay, not on biases and normalisation weights")
    max_grad_norm: float = option(1.0, minimum=0.0, help="clip the gradient to this global norm; 0 does not clip")
    precision: str = option(
        "auto", choices=PRECISIONS, help="of the arithmetic; auto is bf16 where CUDA supports it, else fp32"
    )
    cuda_graphs: str = option(
        "auto",
        choices=CUDA_GRAPHS,
        shapes_result=False,
        help="auto replays whole steps as CUDA graphs on one GPU where that is possible; off runs them eagerly",
    )
    compile: str = option(
        "auto",
        choices=COMPILE,
        shapes_result=False,
        help="run the encoder through torch.compile; auto does on a GPU if the run is long enough to earn its start",
    )
    gradient_checkpointing: bool = option(
        False,
        shapes_result=False,
        help="the encoder's layers keep no activations and run again in the backward pass: less memory, slower",
    )
    deterministic: bool = option(
        False, shapes_result=False, help="the same weights bit for bit from the same command on a GPU too; slower"
    )
    seed: int = option(1000, minimum=0, help="of the fresh weights, the order of the examples and the dropout")

    logging_steps: int = option(20, minimum=1, shapes_result=False, help="a log line every so many steps")
    tensorboard_dir: str | None = option(
        None,
        shapes_result=False,
        help="also write what metrics.jsonl in --saved_dir gets into this folder, for TensorBoard",
    )
    save_steps: int = option(
        100,
        minimum=1,
        shapes_result=False,
        help="save every so many steps, and evaluate unless --eval_steps says otherwise; also after the last",
    )
    eval_steps: int | None = option(
        None,
        minimum=1,
        shapes_result=False,
        help="evaluate every so many steps, and after the last; by default as --save_steps",
    )
    patience: int | None = option(
        None,
        minimum=1,
        help="end after so many evaluations in a row without a better dev metric; the last weights are saved, or the "
        "best with --save_best_model",
    )
    save_best_model: bool = option(False, help="save only when the dev metric improves")

    def __post_init__(self) -> None:
        if self.resume and self.overwrite:
            raise UserError("--resume goes on with what --overwrite replaces; choose one of them")
        if self.dev_ratio is not None and not 0 < self.dev_ratio < 1:
            raise UserError(f"--dev_ratio: expected a share between 0 and 1, such as 0.1, got {self.dev_ratio:g}")
        if self.dev_ratio is not None and self.dev_data_file is not None:
            raise UserError("--dev_ratio makes the dev examples that --dev_data_file has; choose one of them")
        if not self.has_dev_examples:
            self._refuse_evaluation()

    @property
    def has_dev_examples(self) -> bool:
        """Whether the run evaluates."""
        return self.dev_data_file is not None or self.dev_ratio is not None

    @property
    def evaluation_steps(self) -> int:
        """It does so every so many steps."""
        return self.save_steps if self.eval_steps is None else self.eval_steps

    def _refuse_evaluation(self) -> None:
        """Raise a UserError if an option needs dev examples, which this run has none of."""
        for is_set, uses in (
            (self.save_best_model, "--save_best_model compares dev metrics"),
            (self.patience is not None, "--patience counts evaluations"),
            (self.eval_steps is not None, "--eval_steps is for evaluations"),
        ):
            if is_set:
                raise UserError(f"{uses} and needs --dev_data_file or --dev_ratio; without dev examples there are none")


@dataclass(frozen=True, kw_only=True)
class EmbeddingConfig(TrainingConfig):
    """The options of every script that trains sentence embeddings."""

    pooling_mode: str = option(
        "linear", choices=POOLING_MODES, help="the encoder's pooler over [CLS], the state of [CLS], or the mean of all"
    )
    output_emb_size: int | None = option(
        None, minimum=1, help="dimensions of an embedding, by a linear layer after pooling; else the encoder's width"
    )


@dataclass(frozen=True, kw_only=True)
class ContrastiveConfig(EmbeddingConfig):
    """The options of every script that learns from in-batch negatives."""

    margin: float = option(0.2, help="subtracted from the cosine of an example and its own positive")
    scale: float = option(20.0, minimum=0.0, help="factor on the cosines, the inverse of the temperature")
    gather_negatives: bool = option(False, help="the examples of all processes are negatives, not only this one's")
    keep_duplicates: bool = option(False, help="examples that share a text are negatives of each other all the same")
    micro_batch_size: int | None = option(
        None, minimum=1, help="encode this many examples at once: a large batch in the memory of a small one"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dev_ratio is not None:
            raise UserError(
                "--dev_ratio splits off training examples, but this script is evaluated on pairs with a score, which "
                "its training examples do not have; name a file of them with --dev_data_file"
            )
