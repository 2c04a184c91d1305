"""Digests of the files of a model: what a run or an encoding depends on beside its data.

Configs and tokenizers are small and always read. Of weights, the digest is recorded with size and time of the file: as
long as these stay, the weights are not read again.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache

from bertorch.weights import SAFE_WEIGHTS, WEIGHTS

DIGESTS = "digests"  # what a record calls `ModelDigests.weights`
_TEXTS = (".json", ".txt", ".model", ".jinja", ".codes")  # of configs and tokenizers
_RECORDS = ("run.json", "training_state.json")  # of runs, which no model reads
_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")  # the second where there is none of the first
_MODULES = "[0-9]*_*"  # folders of sentence-transformers beside its config


class ModelDigests:
    """Digests of models by names.

    Args:
        record: the file of JSON that an earlier run of the command left; it may be missing or damaged.
    """

    def __init__(self, record: Path) -> None:
        self.weights: dict[str, list[Any]] = {}  # by path: bytes, time in ns, digest; to be kept in the record
        self._known: dict[str, list[Any]] = {}
        with suppress(OSError, ValueError, KeyError, TypeError):
            known = dict(json.loads(record.read_text(encoding="utf-8"))[DIGESTS])
            self._known = {path: entry for path, entry in known.items() if isinstance(entry, list) and len(entry) == 3}

    def of_model(self, name: str) -> dict[str, str]:
        """Those of the files in a folder, or the `commit` of a model of the hub that transformers has loaded."""
        folder = Path(name)
        if folder.is_dir():
            folders = [folder, *module_folders(folder)]
            return {str(file.relative_to(folder)): self._digest(file) for each in folders for file in _files(each)}
        with suppress(ValueError):  # no name of a model
            config = try_to_load_from_cache(name, "config.json")
            if isinstance(config, str):
                return {"commit": Path(config).parent.name}
        return {}

    def of_weights(self, source: str) -> str | None:
        """That of a file of weights, or of those in a folder; a recorded one if they are gone, None if there is none.

        A run needs the weights that it starts from only once.
        """
        files = [Path(source) / SAFE_WEIGHTS, Path(source) / WEIGHTS, Path(source)]
        file = next((file for file in files if file.is_file()), None)
        if file is not None:
            return self._weights_digest(file)
        found = next((path for path in map(str, map(Path.absolute, files)) if path in self._known), None)
        if found is None:
            return None
        self.weights[found] = self._known[found]
        return str(self._known[found][2])

    def _digest(self, file: Path) -> str:
        return _content_digest(file) if file.suffix in _TEXTS else self._weights_digest(file)

    def _weights_digest(self, file: Path) -> str:
        path = str(file.absolute())
        self.weights[path] = recorded_digest(file, self._known.get(path), _content_digest)
        return str(self.weights[path][2])


def module_folders(folder: Path) -> list[Path]:
    """The folders of sentence-transformers' modules in that of a model, in their order."""
    return sorted(each for each in folder.glob(_MODULES) if each.is_dir())


def recorded_digest(file: Path, known: Any, digest: Callable[[Path], str]) -> list[Any]:
    """Bytes, time in ns, and digest of a file: the `known` ones if the first two are the same, without reading it."""
    status = file.stat()
    state = [status.st_size, status.st_mtime_ns]
    is_known = isinstance(known, list) and len(known) == len(state) + 1 and known[:-1] == state
    return known if is_known else [*state, digest(file)]


def _files(folder: Path) -> Iterator[Path]:
    """The configs, the tokenizer and the weights in a folder."""
    files = sorted(file for file in folder.iterdir() if file.is_file())
    yield from (file for file in files if file.suffix in _TEXTS and file.name not in _RECORDS)
    weights = [[file for file in files if file.match(pattern)] for pattern in _WEIGHTS]
    yield from weights[0] or weights[1]


def _content_digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()[:32]
