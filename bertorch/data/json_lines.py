"""Lines that are JSON objects: parsing them, and where in them an error is."""

import json
import math
from typing import Any, NoReturn, TypeGuard

from bertorch.data.lines import HALF_PAIR, BadLineError, shorten

_JSON = json.JSONDecoder()


class Number(str):
    """A number of JSON as it is written: Python refuses to parse those of more than 4300 digits."""

    __slots__ = ()


class WholeNumber(Number):
    """A number without fraction or exponent."""

    __slots__ = ()


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    parsed = dict(pairs)
    if len(parsed) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise BadLineError(f"expected each key once, got {shorten(repeated)} again")
    return parsed


# A repeated key is a `BadLineError`, and numbers are as they are written.
AS_WRITTEN = json.JSONDecoder(
    object_pairs_hook=_unique_keys, parse_int=WholeNumber, parse_float=Number, parse_constant=Number
)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant}, which is no number of JSON")


def _finite(number: str) -> float:
    value = float(number)
    if math.isinf(value):
        raise ValueError(f"{shorten(number)[1:-1]}, which is no finite number")
    return value


JSON = json.JSONDecoder(parse_float=_finite, parse_constant=_refuse)  # what it reads can be written as JSON


def is_string(value: Any) -> TypeGuard[str]:
    """Whether a value of `AS_WRITTEN` is a string of JSON."""
    return isinstance(value, str) and not isinstance(value, Number)


def is_strings(value: Any) -> TypeGuard[list[str]]:
    """Whether a value of `AS_WRITTEN` is a list of strings."""
    return isinstance(value, list) and all(map(is_string, value))


def shown(value: Any) -> str:
    """A value of `AS_WRITTEN` for an error."""
    if isinstance(value, str):
        return shorten(value)[1:-1] if isinstance(value, Number) else shorten(value)
    if isinstance(value, (list, dict)):
        return "a list" if isinstance(value, list) else "an object"
    return json.dumps(value)


def parse_object(line: str, form: str, decoder: json.JSONDecoder = _JSON) -> dict[str, Any]:
    """The JSON object of a line, `form` in errors; a `BadLineError` if it is no JSON, or no object."""
    try:
        parsed = decoder.decode(line)
    except json.JSONDecodeError as error:
        raise BadLineError(f"expected a JSON object ({form}), got: {error.msg}", error.colno) from error
    except (RecursionError, ValueError) as error:  # nested too deeply, or a number of more than 4300 digits
        raise BadLineError(f"expected a JSON object ({form}), got: {error}") from error
    if not isinstance(parsed, dict):
        raise BadLineError(f"expected a JSON object ({form}), got {shorten(line)}")
    return parsed


def column_of_value(line: str, *path: str | int) -> int:
    """The column, in characters from 1, of a value in the JSON object of a line, which `AS_WRITTEN` parses.

    The path to it, such as `"entities", 2, "start"`, is of keys of objects and indices of lists.
    """
    start = _skip_separators(line, 0)
    for step in path:
        start = _start_within(line, start, step)
    return start + 1


def refuse_half_pairs(line: str, text: str | list[str]) -> None:
    """Raise a `BadLineError` for a lone surrogate in what a line has as `"text"`: a text, or a list of tokens."""
    if "\\" not in line:  # UTF-8 has no lone surrogate; only an escape can be one
        return
    path: tuple[int, ...]
    for index, part in enumerate([text] if isinstance(text, str) else text):
        if HALF_PAIR.search(part):
            where, path = ('"text"', ()) if isinstance(text, str) else (f"token {index + 1}", (index,))
            error = f"expected text, got half a surrogate pair in {where}: {shorten(part)}"
            raise BadLineError(error, column_of_value(line, "text", *path))


def _start_within(line: str, start: int, step: str | int) -> int:
    """Where a value begins in the object or list that begins at `start`."""
    end = start + 1
    if isinstance(step, int):
        for _ in range(step):
            _, end = AS_WRITTEN.raw_decode(line, _skip_separators(line, end))
        return _skip_separators(line, end)
    while True:  # of the object itself, not of one inside it
        name, end = AS_WRITTEN.raw_decode(line, _skip_separators(line, end))
        start = _skip_separators(line, end)
        if name == step:
            return start
        _, end = AS_WRITTEN.raw_decode(line, start)


def _skip_separators(line: str, start: int) -> int:
    """Where the next key or value begins, after white space, comma and colon."""
    return next(index for index in range(start, len(line)) if line[index] not in " \t\r,:")
