"""A dataclass of arrays, and of such dataclasses, as a folder: a .npy file for each array, to be mapped into memory."""

from collections.abc import Iterator
from dataclasses import is_dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import numpy as np

T = TypeVar("T")


class DamagedError(Exception):
    """A folder that does not hold what was written into it."""


def array_names(kind: type[Any]) -> Iterator[str]:
    """The names of the arrays, in order; those of a nested dataclass after its name and a dot."""
    for name, hint in get_type_hints(kind).items():
        yield from (f"{name}.{inner}" for inner in array_names(hint)) if _is_nested(hint) else [name]


def save_arrays(dataset: Any, folder: Path) -> dict[str, Any]:
    """Write the arrays into a folder; the result, as JSON, is what `map_arrays` needs to check them.

    Raises:
        OSError: the folder cannot be written.
        TypeError: a field is no array.
    """
    forms: dict[str, Any] = {}
    for name in array_names(type(dataset)):
        array = attrgetter(name)(dataset)
        if not isinstance(array, np.ndarray):
            raise TypeError(f"{type(dataset).__name__}.{name}: expected an array, got {type(array).__name__}")
        np.save(folder / f"{name}.npy", array, allow_pickle=False)
        forms[name] = _form(array)
    return forms


def map_arrays(kind: type[T], folder: Path, forms: dict[str, Any], prefix: str = "") -> T:
    """The dataclass with its arrays as read-only memory maps.

    Raises:
        DamagedError: a file is missing, cut off, or holds another array than `forms` says.
    """
    values: dict[str, Any] = {}
    for field, hint in get_type_hints(kind).items():
        name = prefix + field
        if _is_nested(hint):
            values[field] = map_arrays(hint, folder, forms, f"{name}.")
            continue
        try:
            array = np.load(folder / f"{name}.npy", mmap_mode="r")
        except (OSError, ValueError, EOFError, SyntaxError) as error:
            raise DamagedError(f"{name}.npy: {error}") from error
        if forms.get(name) != _form(array):
            raise DamagedError(f"{name}.npy: expected {forms.get(name)}, got {_form(array)}")
        values[field] = array.view(np.ndarray)  # np.memmap itself is slow to index
    return kind(**values)


def _is_nested(hint: Any) -> bool:
    return is_dataclass(hint)


def _form(array: np.ndarray) -> list[Any]:
    return [array.dtype.str, list(array.shape)]
