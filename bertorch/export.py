r"""Export a saved folder for other programs, compared with the model before it takes its place.

    python -m bertorch.export --model_dir checkpoint --format onnx
    python -m bertorch.export --model_dir checkpoint --format onnx-int8 --check_file dev.txt --max_loss 0.005
    python -m bertorch.export --model_dir checkpoint --format safetensors --output_dir for-the-hub

The folder is one of any of the five scripts, or another that load takes.

    onnx          onnx/model.onnx in fp32, for ONNX Runtime; padded inputs of any number and length
    onnx-int8     onnx/model_qint8_*.onnx: matrix products with weights in int8, for CPUs; smaller, and faster where the
                  processor has VNNI
    safetensors   model.safetensors, of a folder with pytorch_model.bin, and the files beside it

A graph has the whole model inside: logits of a classifier, pooled embeddings, logits of tokens. What follows a pair of
embeddings or a path of tags, the classifier of Sentence-BERT and the transitions of a CRF, is in onnx/model.head.npz.

The check is on --check_file, else on the dev examples of the run that saved the folder, else on texts that are built
in. fp32: no output differs by more than 1e-4. int8: the main metric is at most --max_loss lower; without labels, the
share of equal labels, the F1 of the entities, the mean cosine or the correlation of the scores with those of the model
is at least 1 less --max_loss. An export that fails is not put into place, and the exit code is 1. The model card says
what came of the check.
"""

import sys
from dataclasses import dataclass

from loguru import logger

from bertorch import cli
from bertorch.config import BACKENDS, LaunchedConfig, option
from bertorch.errors import UserError

FORMATS = (*BACKENDS[1:], "safetensors")
FAILED = 1  # the exit code of a failed check


@dataclass(frozen=True, kw_only=True)
class ExportConfig(LaunchedConfig):
    """Options of `bertorch.export`."""

    model_dir: str = option(help="--saved_dir of a run of any of the five scripts, or another folder that load takes")
    format: str = option(choices=FORMATS, help="what to write; see above")
    output_dir: str | None = option(
        None, help="where to; by default --model_dir; safetensors need another folder; it gets all that the model needs"
    )
    check_file: str | None = option(
        None,
        help="what model and export are compared on: lines as evaluate takes them, or as predict (encode) does; by "
        "default the dev examples of the run",
    )
    max_loss: float = option(0.01, minimum=0.0, maximum=1.0, help="onnx-int8: how much lower the metric may be")
    batch_size: int = option(32, minimum=1, help="inputs of a batch of the check")
    overwrite: bool = option(False, help="replace an earlier export")
    license: str | None = option(None, help="for the hub, in the model card: the licence, such as apache-2.0")
    language: tuple[str, ...] = option((), help="for the hub, in the model card: the languages, such as zh")
    datasets: tuple[str, ...] = option((), help="for the hub, in the model card: datasets of the hub it was trained on")

    def __post_init__(self) -> None:
        if self.format == "safetensors":
            if self.output_dir is None:
                raise UserError("--format safetensors needs --output_dir, another folder than --model_dir")
            if self.check_file is not None:
                raise UserError("--check_file is for graphs; of safetensors the weights are the same; leave it out")
        if self.format != "onnx-int8" and self.max_loss != type(self).max_loss:
            raise UserError(f"--max_loss is for --format onnx-int8, got {self.format}; leave it out")


def run(config: ExportConfig) -> None:
    """Export, check, put into place."""
    from bertorch import distributed
    from bertorch.exporting.export import FailedCheckError, export_graphs, export_safetensors
    from bertorch.training.hub_metadata import HubOptions

    if distributed.world_size() > 1:
        raise UserError(f"expected one process, got {distributed.world_size()}; start it without a launcher")
    hub = HubOptions(config.license, config.language, config.datasets)
    output = config.model_dir if config.output_dir is None else config.output_dir
    try:
        if config.format == "safetensors":
            export_safetensors(config.model_dir, output, overwrite=config.overwrite, hub=hub)
            return
        checks = export_graphs(
            config.model_dir,
            config.format,
            output,
            check_file=config.check_file,
            max_loss=config.max_loss,
            batch_size=config.batch_size,
            overwrite=config.overwrite,
            hub=hub,
        )
    except FailedCheckError as error:
        logger.error("{}", error)
        sys.exit(FAILED)
    for name in checks:
        logger.info("{}/onnx/{}", output, name)


if __name__ == "__main__":
    cli.command(ExportConfig, run, __doc__)
