"""What the commands that use a trained model share: their options, and how they load and show progress."""

from dataclasses import dataclass

from bertorch.config import PRECISIONS, LaunchedConfig, option
from bertorch.inference.load import load
from bertorch.inference.model import Model


@dataclass(frozen=True, kw_only=True)
class InferenceConfig(LaunchedConfig):
    """The options of every command that uses a trained model."""

    model_dir: str = option(help="--saved_dir of a run of any of the five scripts")
    batch_size: int = option(32, minimum=1, help="inputs of a batch; on a GPU they are more")
    precision: str = option(
        "auto", choices=PRECISIONS, help="of the arithmetic; auto is half precision on a GPU, fp32 on the CPU"
    )
    max_seq_length: int | None = option(None, minimum=3, help="tokens of an input; by default as many as in training")
    overwrite: bool = option(False, help="replace the output if it exists")

    def load(self) -> Model:
        """The model, on all processes, which share out what it is given.

        Raises:
            UserError: `--model_dir` is no folder of a script.
        """
        return load(
            self.model_dir,
            precision=self.precision,
            batch_size=self.batch_size,
            max_seq_length=self.max_seq_length,
            shared=True,
        )
