"""An ONNX graph in the place of a model: packed batches are padded for it, and run by ONNX Runtime."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PretrainedConfig
from typing_extensions import override

from bertorch.data.batch import PackedBatch
from bertorch.encoder.cpu_attention import similar_lengths
from bertorch.encoder.encoder import LimitedLength, ModelInputs
from bertorch.encoder.encoder_model import EncoderModel
from bertorch.errors import UserError
from bertorch.files import reason

if TYPE_CHECKING:
    import onnxruntime

EXTRA = "pip install 'bertorch[export]' (onnx, onnxscript, onnxruntime)"
KEY = "bertorch"  # of what a graph's own metadata say for us
# Slots of a padded batch that is not cut into batches of similar lengths, and of one of these.
SMALL_BATCH, LARGEST_BATCH = 2**10, 2**14


@dataclass(frozen=True)
class GraphInfo:
    """What a graph does not say by its inputs and outputs; it stands in its metadata."""

    num_token_types: int  # see `ModelInputs`
    padding_id: int
    max_length: int | None
    output: str  # which of its outputs is the packed model's result

    def to_json(self) -> str:
        """As the metadata have it."""
        return json.dumps(asdict(self))


def require_onnxruntime(user: str) -> Any:
    """ONNX Runtime, an extra; a `UserError` where it is not installed, which says that the `user` needs it."""
    try:
        import onnxruntime  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise UserError(f"{user} needs onnxruntime; install it by: {EXTRA}") from error
    return onnxruntime


class OnnxModel(EncoderModel, LimitedLength):
    """Stands in for a model of texts, (N, C), or of tokens, (T, C); on the CPU.

    It can be copied and pickled: a copy opens the file again.

    Args:
        path: of the graph, with our metadata.
        config: of the folder.
        beside: the weights that are not in the graph, by their names in the folder.

    Raises:
        UserError: ONNX Runtime is not installed, or the file is no such graph.
    """

    # Of a sentence encoder that it stands for; see `SentenceEncoder`.
    pooling_mode: str | tuple[str, ...] = ""
    output_emb_size: int | None = None

    def __init__(self, path: Path, config: PretrainedConfig, beside: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._path, self._config, self.beside = str(path), config, dict(beside)
        self._open()

    def _open(self) -> None:
        runtime = require_onnxruntime(f"{self._path}:")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors alone
        try:
            session = runtime.InferenceSession(self._path, options, providers=["CPUExecutionProvider"])
            info = GraphInfo(**json.loads(session.get_modelmeta().custom_metadata_map[KEY]))
            (output,) = [each for each in session.get_outputs() if each.name == info.output]
        except Exception as error:  # the library raises many kinds
            raise UserError(
                f"{self._path}: expected a graph that bertorch.export wrote, got {reason(error)}; export it again"
            ) from error
        self._session: onnxruntime.InferenceSession = session
        self._input_names = [each.name for each in session.get_inputs()]
        self._output, self.size = info.output, int(output.shape[-1])  # C or E
        self._inputs = ModelInputs(info.num_token_types, info.padding_id, None, info.max_length)

    @override
    def __getstate__(self) -> dict[str, Any]:  # a session can be neither pickled nor copied
        return {name: value for name, value in self.__dict__.items() if name != "_session"}

    @override
    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._open()

    @property
    @override
    def config(self) -> PretrainedConfig:
        return self._config

    @property
    @override
    def weights(self) -> nn.ModuleDict:
        return nn.ModuleDict()  # they are in the graph

    @property
    @override
    def max_length(self) -> int | None:
        return self._inputs.max_length

    @property
    def path(self) -> str:
        """Of the graph."""
        return self._path

    def forward(self, batch: PackedBatch) -> Tensor:
        """What the model gives for the batch, (N, C) or (T, C), on the device of the batch."""
        device = batch.input_ids.device
        inputs, layout = self._inputs.padded(batch.to(torch.device("cpu")))  # (N, L) each
        arrays = {name: inputs[name].numpy() for name in self._input_names}
        lengths = layout.mask.sum(dim=1).numpy()  # (N,)
        result: np.ndarray | None = None
        for rows in _parts(lengths):
            longest = int(lengths[rows].max())
            (found,) = self._session.run([self._output], {name: each[rows, :longest] for name, each in arrays.items()})
            if result is None:  # (N, C) or (N, L, C)
                slots = layout.mask.shape[: found.ndim - 1]
                result = np.zeros((*slots, found.shape[-1]), dtype=found.dtype)
            if found.ndim == 2:
                result[rows] = found
            else:
                result[rows, :longest] = found
        assert result is not None, "a batch of no sentences"
        tensor = torch.from_numpy(result)
        return (tensor if tensor.ndim == 2 else layout.unpad(tensor)).to(device)


def _parts(lengths: np.ndarray) -> Iterator[np.ndarray]:
    """The rows of a padded batch, whose sentences have these lengths (N,), in parts with little padding."""
    if len(lengths) * lengths.max() <= SMALL_BATCH:
        yield np.arange(len(lengths))
        return
    order = np.argsort(-lengths, kind="stable")  # (N,), longest first
    for rows in np.split(order, similar_lengths(lengths[order].tolist())[1:]):
        most = max(1, LARGEST_BATCH // int(lengths[rows[0]]))
        yield from (rows[start : start + most] for start in range(0, len(rows), most))
