"""The key of a tokenised dataset: a hash of everything that the dataset depends on."""

import hashlib
import inspect
import json
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import tokenizers
import transformers
from transformers import PreTrainedTokenizerBase

import bertorch
from bertorch.data.retrieval import files_of
from bertorch.data.tags import TagSet
from bertorch.data.tokens import ids_below

_blake2b = partial(hashlib.blake2b, digest_size=16)


def file_digest(path: str) -> str:
    """A hash of a file's content; an `OSError` if it cannot be read."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, _blake2b).hexdigest()


def content_digest(path: str) -> str | None:
    """A hash of what a path of data holds, a file or a folder of `bertorch.data.retrieval`; None if it is neither."""
    paths = files_of(path)
    return files_digest(paths) if all(Path(each).is_file() for each in paths) else None


def files_digest(paths: Sequence[str]) -> str:
    """A hash of the content of files in their order; of one file that of `file_digest`."""
    digests = list(map(file_digest, paths))
    return digests[0] if len(digests) == 1 else _blake2b(" ".join(digests).encode()).hexdigest()


def fingerprint(read: "partial[Any]", content: str, layout: Any) -> str:
    """The key of the result of a reading function, equal only if the result is.

    Every argument of `read` but the first, the path, is bound by keyword or default. `content` is the digest of the
    file, `layout` in JSON values how the result is stored.

    Raises:
        TypeError: an argument is not bound, or of an unknown type.
    """
    _, *others = inspect.signature(read).parameters.values()
    parts = {
        "function": f"{read.func.__module__}.{read.func.__qualname__}",
        "arguments": {other.name: _as_json(other.name, other.default) for other in others},
        "content": content,
        "layout": layout,
        "versions": [bertorch.__version__, transformers.__version__, tokenizers.__version__],
    }
    return _blake2b(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _as_json(name: str, value: Any) -> Any:
    """An argument in JSON values, different for different arguments."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [_as_json(name, item) for item in value]
    if isinstance(value, TagSet):
        return {"scheme": value.scheme_name, "tags": value.tags}
    if isinstance(value, PreTrainedTokenizerBase):
        return {"tokenizer": _tokenizer_digest(value)}
    given = "none" if value is inspect.Parameter.empty else type(value).__name__
    raise TypeError(f"{name}: expected a plain value, a list, a TagSet or a tokenizer, got {given}")


def _tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of the tokenizer's files, and of what they do not hold."""
    limit = "" if (rows := ids_below(tokenizer)) is None else f" {rows}"
    digest = _blake2b(f"{type(tokenizer).__qualname__} {tokenizer.truncation_side}{limit}".encode())
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for file in sorted(Path(folder).iterdir()):
            content = file.read_bytes()
            if file.name == "tokenizer.json":  # without the settings of the last call
                content = json.dumps(json.loads(content) | {"truncation": None, "padding": None}).encode()
            digest.update(f"{file.name} {len(content)} ".encode() + content)
    return digest.hexdigest()
