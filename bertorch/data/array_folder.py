"""A dataclass of arrays as a folder: a .npy file for each array, to be mapped into memory."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import numpy as np

T = TypeVar("T")


class DamagedError(Exception):
    """A folder that does not hold what was written into it."""


def array_names(kind: type[Any], prefix: str = "") -> Iterator[str]:
    """The arrays of a dataclass, in order; those of a dataclass in it after its name and a dot."""
    hints = get_type_hints(kind)
    for field in fields(kind):
        if is_dataclass(hints[field.name]):
            yield from array_names(hints[field.name], f"{prefix}{field.name}.")
        else:
            yield prefix + field.name


def save_arrays(dataset: Any, folder: Path) -> dict[str, Any]:
    """Write the arrays of a dataclass into a folder.

    Returns:
        What `map_arrays` expects of them, as JSON takes it.

    Raises:
        OSError: the folder cannot be written.
        TypeError: a field is no array.
    """
    forms = {}
    for name in array_names(type(dataset)):
        array = dataset
        for step in name.split("."):
            array = getattr(array, step)
        if not isinstance(array, np.ndarray):
            raise TypeError(f"{type(dataset).__name__}.{name}: expected an array, got {type(array).__name__}")
        np.save(_file(folder, name), array, allow_pickle=False)
        forms[name] = _form(array)
    return forms


def map_arrays(kind: type[T], folder: Path, forms: dict[str, Any]) -> T:
    """The dataclass with its arrays as read-only memory maps.

    Args:
        kind: the dataclass.
        folder: where `save_arrays` has written it.
        forms: what that returned.

    Raises:
        DamagedError: a file is missing, cut off, or holds another array.
    """
    arrays = {}
    for name in array_names(kind):
        file = _file(folder, name)
        try:
            array = np.load(file, mmap_mode="r")
        except (OSError, ValueError, EOFError, SyntaxError) as error:
            raise DamagedError(f"{file.name}: {error}") from error
        if forms.get(name) != _form(array):
            raise DamagedError(f"{file.name}: expected {forms.get(name)}, got {_form(array)}")
        arrays[name] = array.view(np.ndarray)  # np.memmap itself is slow to index
    return _assembled(kind, arrays)


def _assembled(kind: type[T], arrays: dict[str, np.ndarray], prefix: str = "") -> T:
    """The dataclass of arrays by the names of `array_names`."""
    values = {}
    for name, hint in get_type_hints(kind).items():
        nested = is_dataclass(hint) and isinstance(hint, type)
        values[name] = _assembled(hint, arrays, f"{prefix}{name}.") if nested else arrays[prefix + name]
    return kind(**values)


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.npy"


def _form(array: np.ndarray) -> list[Any]:
    return [array.dtype.str, list(array.shape)]
