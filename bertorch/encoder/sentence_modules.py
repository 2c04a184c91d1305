"""Read a folder of sentence-transformers: Transformer + Pooling (+ Dense, + Normalize), as its modules.json says.

Releases up to 6.2 name the same settings in several ways. A module or setting under which `SentenceTransformer.encode`
would give other embeddings than ours is refused by name.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import normalizers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase
from transformers.modeling_utils import load_state_dict
from typing_extensions import override

from bertorch.data.prompts import Prompts
from bertorch.errors import UserError
from bertorch.files import read_record, reason
from bertorch.precision import at_least_fp32

# The poolings by their switches in older releases, in the order in which several are concatenated.
_POOLING_SWITCHES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
# By both of its names; never imported by name, which would run code of the folder's choice.
_ACTIVATIONS = {
    name: activation
    for activation in (nn.Identity, nn.Tanh, nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid)
    for name in (f"{activation.__module__}.{activation.__name__}", f"torch.nn.{activation.__name__}")
}
# The settings of each module with the values that can be opened, None for any.
_IN_PLACE = {"module_input_name": ["sentence_embedding"], "module_output_name": ["sentence_embedding"]}
_SETTINGS: dict[str, dict[str, Any]] = {
    "Transformer": {
        "max_seq_length": range(1, 2**20),
        "do_lower_case": (False, True),
        "unpad_inputs": None,
        "transformer_task": ["feature-extraction"],
        "modality_config": [{"text": {"method": "forward", "method_output_name": "last_hidden_state"}}],
        "module_output_name": ["token_embeddings"],
    },
    "Pooling": dict.fromkeys(
        [*_POOLING_SWITCHES, "pooling_mode", "include_prompt", "embedding_dimension", "word_embedding_dimension"]
    ),
    "Dense": dict.fromkeys(["in_features", "out_features", "bias", "activation_function"])
    | {"use_residual": [False]}
    | _IN_PLACE,
    "Normalize": _IN_PLACE,
}
# What a prompt for passages is called: the first that is not empty. `SentenceTransformer.encode_document` of 6.2 takes
# only `document`, and saves an empty one in a folder without it.
_PASSAGES = ("document", "passage", "corpus")
# Arguments within `model_args`, `tokenizer_args`, … that change no embedding beyond rounding.
_HARMLESS_ARGUMENTS = {"add_pooling_layer", "attn_implementation", "dtype", "torch_dtype", "trust_remote_code"}


class _Normalize(nn.Module):
    @override
    def forward(self, embeddings: Tensor) -> Tensor:
        return F.normalize(at_least_fp32(embeddings))  # (N, E)


@dataclass(frozen=True, kw_only=True)
class SentenceModules:
    """What a folder of sentence-transformers does with a text."""

    transformer_folder: str  # has the encoder's config.json and weights, and the tokenizer
    pooling_modes: tuple[str, ...]  # names of `bertorch.encoder.pooling.POOLING`; several are concatenated
    layers: nn.Sequential  # what follows pooling, with weights
    truncate_dim: int | None  # dimensions kept of what the layers give; None keeps all
    max_seq_length: int | None  # tokens of a text; None where tokenizer and encoder set the limit
    lowercase: bool  # whether texts are lowercased before the tokenizer's own normalisation
    prompts: Prompts

    def prepare(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Make the folder's tokenizer lowercase if the folder says so; a `UserError` if it is written in Python."""
        if not self.lowercase:
            return
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            expected = f"{self.transformer_folder}: do_lower_case: expected a fast tokenizer"
            raise UserError(f"{expected}, got {type(tokenizer)}")
        own = [backend.normalizer] if backend.normalizer is not None else []
        backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *own])


def read_modules(folder: str) -> SentenceModules | None:
    """Read what a folder of sentence-transformers says of itself; None if it has no modules.json.

    Raises:
        UserError: it cannot be read, or has modules or settings that cannot be opened.
    """
    if not (Path(folder) / "modules.json").exists():
        return None
    with well_formed(folder):
        return _read_modules(folder)


@contextmanager
def well_formed(folder: str) -> Iterator[None]:
    """Around the reading of settings, of which any may be another kind of value than expected: a `UserError` then."""
    try:
        yield
    except (AttributeError, TypeError) as error:
        raise UserError(
            f"{folder}: expected settings as sentence-transformers saves them, got {reason(error)}; save the model "
            "again, or download it again"
        ) from error


def _read_modules(folder: str) -> SentenceModules:
    prompts, truncate_dim = _model_settings(Path(folder) / "config_sentence_transformers.json")
    (_, transformer), (_, pooling), *layers = _listed(Path(folder))
    files = sorted(transformer.glob("sentence_*_config.json"))  # bert, roberta or another, by release
    settings = _settings("Transformer", files[0]) if files else {}
    modes, prompts = _pooling(pooling, prompts)
    return SentenceModules(
        transformer_folder=str(transformer),
        pooling_modes=modes,
        layers=nn.Sequential(*(_layer(kind, path) for kind, path in layers)),
        truncate_dim=truncate_dim,
        max_seq_length=settings.get("max_seq_length"),
        lowercase=bool(settings.get("do_lower_case")),
        prompts=prompts,
    )


def _read(path: Path, parse: Callable[[Any], Any]) -> Any:
    remedy = "save the model again, or download the file again"
    return read_record(path, parse, expected="settings of sentence-transformers", remedy=remedy)


def _listed(folder: Path) -> list[tuple[str, Path]]:
    """The kind and folder of each module."""
    path = folder / "modules.json"
    modules = _read(path, lambda listed: [(str(module["type"]), folder / module["path"]) for module in listed])
    for index, (type_, _) in enumerate(modules + [("an end", folder)] * (2 - len(modules))):
        known = ("Transformer", "Pooling")[index : index + 1] or ("Dense", "Normalize")
        if not type_.startswith("sentence_transformers.") or type_.rpartition(".")[2] not in known:
            expected = "sentence-transformers' Transformer, Pooling, then any of Dense and Normalize"
            raise UserError(f"{path}: expected {expected}, got {type_} as module {index}")
    return [(type_.rpartition(".")[2], module_folder) for type_, module_folder in modules]


def _settings(kind: str, path: Path) -> dict[str, Any]:
    """The settings of a module, all of which can be opened; none if it has no file."""
    settings: dict[str, Any] = _read(path, dict) or {}
    for name, value in settings.items():
        accepted = _SETTINGS[kind].get(name, ())
        has_arguments = name.endswith(("_args", "_kwargs")) and isinstance(value, dict)
        harmless = has_arguments and value.keys() <= _HARMLESS_ARGUMENTS
        if not harmless and None not in (value, accepted) and value not in accepted:
            raise UserError(f"{path}: expected settings of a {kind} that can be opened, got {name}: {value!r}")
    return settings


def _model_settings(path: Path) -> tuple[Prompts, int | None]:
    """The prompts, and the dimensions kept of an embedding (None: all)."""
    settings = _read(path, dict) or {}
    kind = settings.get("model_type", "SentenceTransformer")
    if kind != "SentenceTransformer":
        raise UserError(f"{path}: expected the model_type SentenceTransformer, got {kind}")
    name = settings.get("default_prompt_name")
    prompts = {None: "", "query": "", "document": ""} | (settings.get("prompts") or {})
    if name not in prompts:
        known = ", ".join(filter(None, prompts))
        raise UserError(f"{path}: default_prompt_name: expected one of {known}, got {name!r}")
    dimensions = settings.get("truncate_dim") or None
    if not all(isinstance(prompt, str | None) for prompt in prompts.values()) or not isinstance(dimensions, int | None):
        raise UserError(
            f"{path}: expected texts as prompts and a number as truncate_dim, got {prompts!r} and {dimensions!r}"
        )
    passage = next((prompts[each] for each in _PASSAGES if prompts.get(each)), "")
    return Prompts(prompts["query"] or "", passage, prompts[name] or ""), dimensions


def _pooling(folder: Path, prompts: Prompts) -> tuple[tuple[str, ...], Prompts]:
    """Its modes, and those prompts that can be applied."""
    path = folder / "config.json"
    settings = _settings("Pooling", path)
    if not settings.get("include_prompt", True):
        if prompts.default:
            raise UserError(
                f"{path}: expected include_prompt: true with the default prompt {prompts.default!r}, got false"
            )
        prompts = Prompts(None if prompts.query else "", None if prompts.passage else "")
    switched_on = [mode for switch, mode in _POOLING_SWITCHES.items() if settings.get(switch)]
    modes = settings.get("pooling_mode") or switched_on or "mean"
    modes = (modes,) if isinstance(modes, str) else tuple(modes)
    known = set(_POOLING_SWITCHES.values())
    if not settings or not known.issuperset(modes):
        raise UserError(f"{path}: pooling_mode: expected some of {', '.join(sorted(known))}, got {modes!r}")
    return modes, prompts


def _layer(kind: str, folder: Path) -> nn.Module:
    """A Dense, which is a linear layer and its activation, or a Normalize."""
    settings = _settings(kind, folder / "config.json")
    if kind == "Normalize":
        return _Normalize()
    name = settings.get("activation_function", "torch.nn.Tanh")
    if name not in _ACTIVATIONS:
        known = ", ".join(activation for activation in _ACTIVATIONS if activation.count(".") == 2)
        raise UserError(f"{folder}/config.json: activation_function: expected one of {known}, got {name!r}")
    weights = folder / "model.safetensors"
    try:
        linear = nn.Linear(settings["in_features"], settings["out_features"], bias=settings.get("bias", True))
        tensors = load_state_dict(weights if weights.exists() else folder / "pytorch_model.bin")
        linear.load_state_dict({name.removeprefix("linear."): tensor for name, tensor in tensors.items()})
    except Exception as error:  # torch and safetensors raise many kinds
        raise UserError(f"{folder}: expected the settings and weights of a Dense, got {reason(error)}") from error
    return nn.Sequential(linear, _ACTIVATIONS[name]())
