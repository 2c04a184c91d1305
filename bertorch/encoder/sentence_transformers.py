"""The files by which `SentenceTransformer(saved_dir)` loads a sentence encoder; written without that package.

Its encoder is the folder itself (`config.json`, `pytorch_model.bin`, the tokenizer's files). Beside them `modules.json`
lists pooling and dense layers, each with a folder of its own. Older and newer releases read this form.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from loguru import logger
from torch import Tensor, nn

import bertorch
from bertorch.data.prompts import NO_PROMPTS, Prompts
from bertorch.encoder.pooling import PretrainedPooler
from bertorch.encoder.sentence_encoder import SentenceEncoder
from bertorch.encoder.trials import eval_mode
from bertorch.weights import SAFE_WEIGHTS, save_file

SETTINGS = "config_sentence_transformers.json"
_MARK = "bertorch"  # among the versions in it
_LATER = ("model_type", "similarity_fn_name")  # in it, which folders of earlier versions lack


class SentenceTransformerFiles:
    """Saved beside the weights of a sentence encoder.

    `linear` pooling becomes pooling of [CLS] and a dense layer. sentence-transformers has no module for a pooler other
    than a dense layer with tanh or without activation; for such a pooler a warning is logged and nothing written.
    """

    def __init__(self, embedder: SentenceEncoder, max_seq_length: int, prompts: Prompts = NO_PROMPTS) -> None:
        self._embedder, self._prompts = embedder, prompts
        self._max_seq_length = max_seq_length
        dense: list[tuple[nn.Linear, nn.Module]] | None = []  # with their activations, None if not possible
        if embedder.pooling_mode == "linear":
            pooler = _pooler_layer(embedder)
            dense = None if pooler is None else [pooler]
        if dense is None:
            logger.warning(
                "sentence-transformers knows no pooler like that of {}; the saved folder loads in transformers only",
                type(embedder.encoder.model).__name__,
            )
        elif embedder.emb_reduce_linear is not None:
            dense.append((embedder.emb_reduce_linear, nn.Identity()))
        # Copied now, since the files are written while training goes on.
        self._dense = None if dense is None else [_Dense.of(layer, activation) for layer, activation in dense]

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write the files into a folder."""
        if self._dense is None:
            return
        folder = Path(save_directory)
        modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
        mean = self._embedder.pooling_mode == "mean"
        pooling = {
            "word_embedding_dimension": self._embedder.config.hidden_size,
            "pooling_mode_cls_token": not mean,
            "pooling_mode_mean_tokens": mean,
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
        }
        _write(folder / "1_Pooling" / "config.json", pooling)
        for index, dense in enumerate(self._dense, start=2):
            modules.append((f"{index}_Dense", "Dense"))
            dense.write(folder / f"{index}_Dense")
        listed = [
            {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{module}"}
            for index, (path, module) in enumerate(modules)
        ]
        _write(folder / "modules.json", listed)
        _write(folder / "sentence_bert_config.json", {"max_seq_length": self._max_seq_length, "do_lower_case": False})
        prompts = _prompts(self._prompts.query, self._prompts.passage) if self._prompts.by_role else {}
        _write(folder / SETTINGS, _settings(bertorch.__version__, prompts))


def is_of_sentence_transformers(folder: Path) -> bool:
    """Whether that package saved a folder: it writes a file of settings, as we do, which mark ours.

    Its release 2 keeps the mark when it saves a folder of ours. So the file is ours only with exactly our text, whose
    newline at the end its own lacks.
    """
    try:
        text = (folder / SETTINGS).read_text(encoding="utf-8")
        settings = json.loads(text)
        version, prompts = settings["__version__"][_MARK], settings["prompts"]
        written = _settings(version, _prompts(prompts["query"], prompts["document"]) if prompts else {})
        earlier = {name: value for name, value in written.items() if name not in _LATER}
        return text not in (_text(written), _text(earlier))
    except FileNotFoundError:
        return False
    except (OSError, ValueError, LookupError, TypeError):
        return True


def _prompts(query: str | None, passage: str | None) -> dict[str, str | None]:
    return {"query": query, "document": passage}


def _settings(version: str, prompts: Mapping[str, str | None]) -> dict[str, Any]:
    """What the file of settings says of a model, saved by this version of bertorch."""
    return {
        "__version__": {_MARK: version},
        "model_type": "SentenceTransformer",
        "prompts": prompts,
        "default_prompt_name": None,
        "similarity_fn_name": "cosine",
    }


def _pooler_layer(embedder: SentenceEncoder) -> tuple[nn.Linear, nn.Module] | None:
    """The pooler as a dense layer and its activation, None if its results differ from one."""
    pooler = PretrainedPooler(embedder.encoder.model)
    layers = [module for module in pooler.modules() if isinstance(module, nn.Linear)]
    if len(layers) == 1:
        layer = layers[0]
        states = torch.linspace(-2, 2, 4 * layer.in_features).to(layer.weight).view(4, -1)  # (4, H)
        with eval_mode(pooler):
            for activation in (nn.Tanh(), nn.Identity()):
                if torch.equal(pooler(states), activation(layer(states))):
                    return layer, activation
    return None


class _Dense(NamedTuple):
    """A dense layer as its folder has it."""

    config: dict[str, Any]
    weights: dict[str, Tensor]

    @classmethod
    def of(cls, layer: nn.Linear, activation: nn.Module) -> "_Dense":
        config = {
            "in_features": layer.in_features,
            "out_features": layer.out_features,
            "bias": layer.bias is not None,
            "activation_function": f"{type(activation).__module__}.{type(activation).__qualname__}",
        }
        weights = {f"linear.{name}": tensor.to("cpu", copy=True) for name, tensor in layer.state_dict().items()}
        return cls(config, weights)

    def write(self, folder: Path) -> None:
        _write(folder / "config.json", self.config)
        save_file(self.weights, folder / SAFE_WEIGHTS)


def _write(file: Path, content: Any) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(_text(content), encoding="utf-8")


def _text(content: Any) -> str:
    return json.dumps(content, indent=2) + "\n"
