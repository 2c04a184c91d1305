"""Weights of torch.save or safetensors: read under the names of several programs, without running pickled code."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from loguru import logger
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save_file as save_safetensors
from torch import Tensor, nn

from bertorch.config import SAVE_FORMATS
from bertorch.errors import ShapeMismatchError, UserError
from bertorch.files import check_sums, reason, require_file

WEIGHTS = "pytorch_model.bin"
SAFE_WEIGHTS = "model.safetensors"
# By `--save_format`.
WEIGHTS_FILES = dict(zip(SAVE_FORMATS, ((WEIGHTS,), (SAFE_WEIGHTS,), (WEIGHTS, SAFE_WEIGHTS)), strict=True))


def warm_start(
    module: nn.Module,
    source: str,
    encoder_prefix: str,
    convert: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] = dict,
    is_dropped: Callable[[str], bool] | None = None,
) -> None:
    """Load weights by name into a module; the log names every missing or unexpected tensor.

    Names may be those of the module, of a bare encoder (`embeddings.…`), of the earlier bertorch, which called every
    encoder `encoder.…` or `bert.…`, of a model wrapped for several GPUs (`module.…`), or of the first BERT checkpoints
    (`LayerNorm.gamma`).

    Args:
        module: to load into.
        source: as for `load_weights`.
        encoder_prefix: the encoder's name within the module, such as `bert`.
        convert: the task's conversion of weights of earlier programs, which keep their names.
        is_dropped: whether a tensor, by the module's name, is one of the head, to start anew; what else lies outside
            the encoder then starts anew if it does not fit. None takes all.

    Raises:
        UserError: no readable weights, a shape mismatch, two tensors of one name, or not one tensor that fits.
    """
    expected = module.state_dict()
    option = f"--init_from_ckpt {source}"
    found, unexpected = _matched(expected, convert(load_weights(source)), encoder_prefix, option)
    unfit = _unfit(expected, found)
    outside = {name for name in found if not name.startswith(f"{encoder_prefix}.")}
    if is_dropped is not None:
        dropped = {name for name in outside if is_dropped(name) or name in unfit}
        found = {name: tensor for name, tensor in found.items() if name not in dropped}
    elif unfit and unfit.keys() <= outside:
        remedy = (
            "A head must be of the same script and have as many outputs as there are labels; --new_head leaves it out "
            "and trains a new one."
        )
        raise ShapeMismatchError(option, unfit.values(), remedy)
    _require_shapes(option, expected, found)
    if not found:
        raise UserError(
            f"{option}: expected names such as {next(iter(expected))}, got none of this model, but "
            f"{', '.join(unexpected[:3])} …; use weights of the same architecture"
        )
    module.load_state_dict(found, strict=False)
    logger.info("{}: loaded {} of {} tensors", source, len(found), len(expected))
    for what, names in (("missing", sorted(expected.keys() - found.keys())), ("unexpected", sorted(unexpected))):
        if names:
            logger.warning("{}: {}: {}", source, what, ", ".join(names))


def load_into(module: nn.Module, weights: Mapping[str, Tensor], encoder_prefix: str, folder: str) -> None:
    """Load all weights of a saved `folder`, under any of the names that `warm_start` knows; unexpected ones are logged.

    Raises:
        UserError: a weight of the model is missing, or has another shape.
    """
    found, unexpected = _matched(module.state_dict(), weights, encoder_prefix, folder)
    _require_shapes(folder, module.state_dict(), found)
    missing = sorted(name for name, _ in module.named_parameters() if name not in found)
    if missing:
        shown = ", ".join(missing[:3]) + (" …" if len(missing) > 3 else "")
        raise UserError(
            f"{folder}: expected all weights of the model that its config.json describes, got none for {shown} "
            f"({len(missing)} missing); are config.json and the weights of the same save?"
        )
    module.load_state_dict(found, strict=False)
    if unexpected:
        logger.warning("{}: weights that the model does not have: {}", folder, ", ".join(sorted(unexpected)))


def _matched(
    expected: Mapping[str, Tensor], weights: Mapping[str, Tensor], encoder_prefix: str, source: str
) -> tuple[dict[str, Tensor], list[str]]:
    """The weights under the names expected, and the names of those that are not expected.

    Raises:
        UserError: two are of one name, or integers where real numbers are expected.
    """
    name_of: dict[str, str] = {}
    unexpected = []
    for name in weights:
        target = _target_name(name, expected, encoder_prefix)
        if target is None:
            unexpected.append(name)
        elif target in name_of:
            raise UserError(
                f"{source}: expected one tensor for {target}, got two: {name_of[target]}, {name}; leave one out"
            )
        else:
            name_of[target] = name
    found = {target: weights[name] for target, name in name_of.items()}
    for target, tensor in found.items():
        if expected[target].is_floating_point() and not tensor.is_floating_point():
            raise UserError(
                f"{source}: expected real numbers for {target}, got {tensor.dtype}, as of a quantised model; take its "
                "weights from before that"
            )
    return found, unexpected


def _unfit(
    expected: Mapping[str, Tensor], found: Mapping[str, Tensor]
) -> dict[str, tuple[str, torch.Size, torch.Size]]:
    """By name the tensors of another shape: name, expected and got."""
    shapes = {name: (name, expected[name].shape, tensor.shape) for name, tensor in found.items()}
    return {name: each for name, each in shapes.items() if each[1] != each[2]}


def _require_shapes(source: str, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    if unfit := _unfit(expected, found):
        raise ShapeMismatchError(source, unfit.values())


def weights_file(source: str) -> Path:
    """The file of weights that `source` is, or that is in this folder; a `UserError` if there is none."""
    path = Path(source)
    if path.is_dir():
        inside = [path / name for name in (SAFE_WEIGHTS, WEIGHTS) if (path / name).exists()]
        if not inside:
            exported = " but an export; add --backend, see its onnx folder" if (path / "onnx").is_dir() else ""
            raise UserError(f"{source}: expected {SAFE_WEIGHTS} or {WEIGHTS} in this folder, got neither{exported}")
        path = inside[0]
    require_file(path, "a .bin or .safetensors file, or a folder with one")
    return path


def load_weights(source: str) -> dict[str, Tensor]:
    """Read the tensors of a `.bin` or `.safetensors` file, or of a folder with one, onto the CPU; runs no pickled code.

    Raises:
        UserError: no such file, a damaged one, or not a file of named dense tensors.
    """
    path = weights_file(source)
    try:
        if path.suffix == ".safetensors":
            weights = load_file(path)
        else:
            check_sums(path)
            weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle may raise anything
        raise UserError(f"{path}: expected weights saved by torch.save or safetensors, got: {reason(error)}") from error
    if not isinstance(weights, Mapping):
        raise UserError(f"{path}: expected a mapping from names to tensors, got {type(weights).__name__}")
    for name, tensor in weights.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise UserError(
                f"{path}: expected a mapping from names to tensors, got {name!r}: {type(tensor).__name__} in it"
            )
        special = tensor.is_meta or tensor.is_quantized or tensor.is_nested or tensor.is_complex()
        if special or tensor.layout != torch.strided:
            raise UserError(
                f"{path}: expected dense real tensors with their values, got {name}: {tensor.layout}, {tensor.dtype}, "
                f"on {tensor.device}; save it as a plain tensor"
            )
    return dict(weights)


def save_file(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a new safetensors file that transformers can load, with the permissions of any other new file.

    Raises:
        OSError: it cannot be written.
    """
    path.touch(exist_ok=False)
    mode = path.stat().st_mode
    try:
        save_safetensors(on_cpu(tensors), path, metadata={"format": "pt"})  # a file that only its owner can read
    except SafetensorError as error:  # its own name for what the system says
        raise OSError(str(error)) from error
    path.chmod(mode)


def on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, contiguous and in memory of their own, copied only where they are not."""
    found: dict[str, Tensor] = {}
    memory: set[int] = set()
    for name, tensor in tensors.items():
        detached = tensor.detach().cpu().contiguous()
        storage = detached.untyped_storage()
        is_shared = storage.data_ptr() in memory or storage.nbytes() != detached.nbytes
        found[name] = detached.clone() if is_shared else detached
        memory.add(found[name].untyped_storage().data_ptr())
    return found


def _target_name(name: str, expected: Mapping[str, Tensor], encoder_prefix: str) -> str | None:
    """The module's name for a tensor of a checkpoint, None if it has none."""
    name = name.removeprefix("module.")
    name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
    bare = [name, name.removeprefix("encoder."), name.removeprefix("bert.")]
    candidates = (name, *(f"{encoder_prefix}.{candidate}" for candidate in bare))
    return next((candidate for candidate in candidates if candidate in expected), None)
