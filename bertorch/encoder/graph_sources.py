"""What a graph is made of: digests of the model in a folder, as far as a graph depends on it.

Of weights the tensors count, in whatever file they are. The names of labels and what an evaluation fits to a model are
outside of a graph; a change of these leaves it as fresh as it was.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from bertorch.data.model_digests import module_folders, recorded_digest
from bertorch.errors import UserError
from bertorch.files import reason, to_json
from bertorch.weights import SAFE_WEIGHTS, WEIGHTS, load_weights

ENCODER = "weights"  # the tensors of the encoder's folder itself; a folder of an export may have none
CONFIG, MODULES, SETTINGS = "config.json", "modules.json", "config_sentence_transformers.json"
FITTED = ("thresholds", "temperature")  # of `bertorch` in config.json
_LABELS = ("id2label", "label2id", "_name_or_path", "transformers_version")

States = dict[str, list[Any]]  # by file in the folder: bytes, time in ns, digest


def made_of(folder: str | Path, known: Mapping[str, Any]) -> tuple[dict[str, str], States]:
    """Digests of what a graph of the model in a folder depends on, and what spares to read weights again.

    Args:
        folder: of a model, or of an export.
        known: what an earlier call gave as the second.

    Raises:
        UserError: a file cannot be read.
    """
    path = Path(folder)
    found: dict[str, str] = {}
    states: States = {}
    _add_config(found, path / CONFIG, _of_config)
    _add_config(found, path / MODULES, lambda modules: modules)
    _add_config(found, path / SETTINGS, lambda settings: settings.get("truncate_dim"))
    inner = module_folders(path)
    for each in inner:
        _add_config(found, each / "config.json", lambda config: config, name=f"{each.name}/config.json")
    for each, name in ((path, ENCODER), *((each, f"{each.name}/{ENCODER}") for each in inner)):
        file = next((each / file for file in (SAFE_WEIGHTS, WEIGHTS) if (each / file).is_file()), None)
        if file is not None:
            relative = str(file.relative_to(path))
            states[relative] = recorded_digest(file, known.get(relative), tensors_digest)
            found[name] = str(states[relative][2])
    return found, states


def tensors_digest(file: Path) -> str:
    """A digest of the named tensors in a file of weights; that of another file with the same tensors is the same."""
    digest = hashlib.sha256()
    for name, tensor in sorted(load_weights(str(file)).items()):
        digest.update(to_json([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]


def _add_config(found: dict[str, str], file: Path, part: Callable[[Any], Any], name: str | None = None) -> None:
    """Add the digest of a part of a JSON file; without the file, or where the part is None, there is nothing to add."""
    try:
        content = part(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{file}: expected the description of a model, got {reason(error)}") from error
    if content is not None:
        text = json.dumps(content, sort_keys=True)
        found[name or file.name] = hashlib.sha256(text.encode()).hexdigest()[:32]


def _of_config(config: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in config.items() if name not in _LABELS}
    if isinstance(ours := kept.get("bertorch"), dict):
        kept["bertorch"] = {name: value for name, value in ours.items() if name not in FITTED}
    return kept
