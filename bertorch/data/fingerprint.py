"""The key of a tokenised dataset: a hash of all that it is made of."""

import hashlib
import inspect
import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import tokenizers
import transformers
from transformers import PreTrainedTokenizerBase

import bertorch
from bertorch.data.tags import TagSet

_DIGEST_BYTES = 16


def file_digest(path: str) -> str:
    """A hash of a file's content.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, _blake2b).hexdigest()


def fingerprint(read: "partial[Any]", content: str, layout: Any) -> str:
    """The key of what a reading function makes of a file: the same only if the result is the same.

    Args:
        read: a function of a module, with everything but its first argument, the path, bound by keyword or by default.
        content: the file's digest.
        layout: how the result is stored, as JSON takes it.

    Raises:
        TypeError: an argument that is not bound, or of a type that this module cannot tell apart.
    """
    _, *others = inspect.signature(read).parameters.values()
    made_of = {
        "function": f"{read.func.__module__}.{read.func.__qualname__}",
        "arguments": {other.name: _described(other.name, other.default) for other in others},
        "content": content,
        "layout": layout,
        "versions": [bertorch.__version__, transformers.__version__, tokenizers.__version__],
    }
    return _blake2b(json.dumps(made_of, sort_keys=True).encode()).hexdigest()


def _described(name: str, value: Any) -> Any:
    """An argument as JSON, different for different ones."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [_described(name, item) for item in value]
    if isinstance(value, TagSet):
        return {"scheme": value.scheme_name, "tags": value.tags}
    if isinstance(value, PreTrainedTokenizerBase):
        return {"tokenizer": _tokenizer_digest(value)}
    given = "none" if value is inspect.Parameter.empty else type(value).__name__
    raise TypeError(f"{name}: expected a plain value, a list, a TagSet or a tokenizer, got {given}")


def _tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of the files that the tokenizer would be loaded from, and of what they do not tell."""
    digest = _blake2b(f"{type(tokenizer).__qualname__} {tokenizer.truncation_side}".encode())
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for file in sorted(Path(folder).iterdir()):
            content = file.read_bytes()
            if file.name == "tokenizer.json":  # also holds what the last call asked for
                state = json.loads(content) | {"truncation": None, "padding": None}
                content = json.dumps(state).encode()
            digest.update(f"{file.name} {len(content)} ".encode() + content)
    return digest.hexdigest()


def _blake2b(content: bytes = b"") -> hashlib.blake2b:
    return hashlib.blake2b(content, digest_size=_DIGEST_BYTES)
