"""doccano's export of sequence labelling and relation extraction, and what it imports.

A line, or an item of an array, is `{"id": 1, "text": "…", "label": [[0, 2, "PER"], …]}`; older versions call the key
`labels` or `entities`. With relations it is `{"text": "…", "entities": [{"start_offset", "end_offset", "label"}, …],
"relations": […]}`. Since version 1.5 the offsets are those of JavaScript, in units of UTF-16 (pull request 1511 and
issue 2290 of doccano); versions before counted code points (its pull request 108), and nothing in an export says which.
A project with the option "Count grapheme clusters as one character" counts these, which cannot be told from either.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bertorch.data.entity_lines import other_keys
from bertorch.data.lines import BadLineError, first_few, shorten
from bertorch.files import to_json
from bertorch.prepare.annotated_texts import AnnotatedText, checked_text
from bertorch.prepare.json_documents import read_json_documents
from bertorch.prepare.offsets import Annotated, Fit, LeftOut, counting_to_write, fit_text, offsets_of, settle

USUAL = "utf16"
_FORM = '{"text": "…", "label": [[0, 2, "PER"]]}'
_ENTITIES = ("label", "labels", "entities")
_OTHERS = {"relations": "relations", "cats": "labels of documents", "Comments": "comments"}


def read_doccano(path: str, *, offsets: str, on_bad_row: str) -> list[AnnotatedText]:
    """Read an export; keys such as the id are kept.

    Args:
        path: a file of JSON lines, or of an array.
        offsets: what they count, a name of `OFFSETS`.
        on_bad_row: "stop", or "skip" for malformed documents.

    Raises:
        UserError: a missing or empty file, malformed documents, or offsets that `auto` cannot tell apart.
    """

    def parse(item: dict[str, Any]) -> Fit:
        text = checked_text(item.get("text"), "text", item)
        more = other_keys(item, {*_ENTITIES, *_OTHERS})
        return fit_text(text, list(_annotated(item)), more, _left_out(item), offsets=offsets, usual=USUAL)

    rows = read_json_documents(path, parse, form=_FORM, on_bad_row=on_bad_row)
    return settle(path, rows, "say which with --offsets: utf16 since doccano 1.5, code_points before")


def _annotated(item: Mapping[str, Any]) -> Iterator[Annotated]:
    keys = [key for key in _ENTITIES if key in item]
    if len(keys) != 1 or not isinstance(item[keys[0]], list):
        got = f"the keys {first_few(list(item)) or 'none'}" if len(keys) != 1 else shorten(to_json(item[keys[0]]))
        raise BadLineError(f"expected a list of entities with one of the keys {', '.join(_ENTITIES)}, got {got}")
    for entity in item[keys[0]]:
        match entity:
            case [start, end, type_]:
                yield Annotated(start, end, type_)
            case {"start_offset": start, "end_offset": end, "label": type_}:
                yield Annotated(start, end, type_)
            case _:
                expected = '[start, end, "TYPE"] or {"start_offset", "end_offset", "label"}'
                raise BadLineError(f"expected an entity as {expected}, got {shorten(to_json(entity))}")


def _left_out(item: Mapping[str, Any]) -> list[LeftOut]:
    values = ((kind, item.get(key)) for key, kind in _OTHERS.items())
    return [
        LeftOut(f"left out {kind}", shorten(to_json(each)))
        for kind, value in values
        if isinstance(value, list)
        for each in value
    ]


def doccano_lines(lines: Sequence[AnnotatedText], *, offsets: str) -> Iterator[str]:
    """The lines that doccano imports as JSONL, with the column `label`; `offsets` as in `read_doccano`."""
    counting = counting_to_write(lines, offsets, USUAL)
    for line in lines:
        at = offsets_of(line.text, counting)
        label = [[at[entity.start], at[entity.end], entity.type] for entity in line.entities]
        yield to_json({**other_keys(line.more), "text": line.text, "label": label})
