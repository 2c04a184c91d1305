"""What can be known of a run before its data is read: it holds `--saved_dir`, and its options are possible."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bertorch import distributed
from bertorch.config import TrainingConfig
from bertorch.errors import UserError
from bertorch.precision import Precision
from bertorch.training.checkpoints import checkpoints
from bertorch.training.run_folder import LOCK, RunFolder
from bertorch.training.run_options import note_inputs, plain_options
from bertorch.weights import weights_file
from bertorch.writer_lock import only_writer


@contextmanager
def started(config: TrainingConfig) -> Iterator[None]:
    """Hold `--saved_dir` until the end; all processes must enter.

    Raises:
        UserError: another run writes there or has left results there that differ in an option, or `--precision` or
            `--init_from_ckpt` is not possible.
    """
    with only_writer(Path(config.saved_dir) / LOCK, f"--saved_dir {config.saved_dir}"):
        Precision.resolve(config.precision, distributed.device())
        distributed.on_main(lambda: _check(config))
        yield


def _check(config: TrainingConfig) -> None:
    model, saved_dir = Path(config.pretrained_model_name_or_path), Path(config.saved_dir)
    if config.layers_from is not None and model.resolve() == saved_dir.resolve():
        raise UserError(
            f"--layers_from {config.layers_from}: expected another --saved_dir than the model's folder, got "
            f"{config.saved_dir} for both: after the first save the layers would not be there to go on from"
        )
    note_inputs(config)
    if not config.overwrite:
        RunFolder(config.saved_dir, plain_options(config), keep=0, digests={}).require_own(is_part=True)
    if config.init_from_ckpt is not None and not checkpoints(Path(config.saved_dir)):  # a run that goes on needs none
        weights_file(config.init_from_ckpt)
