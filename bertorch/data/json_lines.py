"""Lines that are JSON objects: parsing them, and where in them an error is."""

import json
from typing import Any

from bertorch.data.lines import BadLineError, shorten

_JSON = json.JSONDecoder()


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


def column_of_value(line: str, key: str, decoder: json.JSONDecoder = _JSON) -> int:
    """The column, in characters from 1, of the value under a key of the JSON object of a line, which has it."""
    end = line.index("{") + 1
    name = None
    while name != key:  # of the object itself, not of one inside it
        name, end = decoder.raw_decode(line, _skip_separators(line, end))
        start = _skip_separators(line, end)
        _, end = decoder.raw_decode(line, start)
    return start + 1


def _skip_separators(line: str, start: int) -> int:
    """Where the next key or value begins, after white space, comma and colon."""
    return next(index for index in range(start, len(line)) if line[index] not in " \t\r,:")
