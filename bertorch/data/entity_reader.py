"""Lines with entities → tokens, and labels as spans or as tags."""

from itertools import pairwise
from typing import Any

import numpy as np
import torch

from bertorch.data.entity_lines import EntityLine, entities_of, tokens_of
from bertorch.data.json_lines import column_of_value
from bertorch.data.lines import BadLineError, first_few, shorten
from bertorch.data.spans import SpanFinder
from bertorch.data.tags import TagSet, tag_entities

_REMEDY = "--head global_pointer finds overlapping entities"


class EntityReader:
    """From lines with entities to their tokens and labels.

    Args:
        tags: the types that may occur, and the tags that spell them.
        split: how a text is cut, see `cut_text`.
        as_spans: whether the labels are spans, else tags.
    """

    def __init__(self, tags: TagSet, split: str, *, as_spans: bool) -> None:
        self._tags, self._split, self._as_spans = tags, split, as_spans
        self._type_ids = {type_: index for index, type_ in enumerate(tags.types)}
        self._find_spans = SpanFinder(tags)
        self._spelled: dict[tuple[int, str], bool] = {}  # by length, of which 3 stands for all from there, and type

    def __call__(self, line: str, parsed: dict[str, Any]) -> tuple[list[str], np.ndarray]:
        """The tokens of a line, from its object, and spans (entities, 3), sorted, or tags (tokens,), int64.

        Raises:
            BadLineError: see `entities_of` and `tokens_of`; an unknown type; of tags also entities that overlap, or
                that the tags cannot spell.
        """
        entities = entities_of(line, parsed)
        for index, (_, _, type_) in enumerate(entities.entities):
            if type_ not in self._type_ids:
                known = first_few(self._tags.types)
                error = f"expected one of the types ({known}), got {shorten(type_)} in entity {index + 1}"
                raise BadLineError(error, column_of_value(line, "entities", index, "type"))
        tokens, extents = tokens_of(line, entities, self._split)
        rows = np.array([(start, end, self._type_ids[type_]) for start, end, type_ in extents], np.int64).reshape(-1, 3)
        order = np.lexsort(rows.T[::-1])  # (entities,), by first token, then end, then type
        if self._as_spans:
            return tokens, rows[order]
        self._require_tags(line, entities, rows, order)
        return tokens, np.array([self._tags.ids[name] for name in self._tags.encode(extents, len(tokens))], np.int64)

    def _require_tags(self, line: str, entities: EntityLine, rows: np.ndarray, order: np.ndarray) -> None:
        for one, other in pairwise(order.tolist()):
            if rows[other, 0] < rows[one, 1]:
                both = f"{entities.described(one)} and {entities.described(other)}"
                error = f"expected entities that do not overlap, as tags cannot spell others, got {both}; {_REMEDY}"
                raise BadLineError(error, column_of_value(line, "entities", other))
        for index, (start, end, _) in enumerate(rows.tolist()):
            type_ = entities.entities[index][2]
            if not self._can_spell(min(end - start, 3), type_):
                needed = dict.fromkeys(tag_entities(3, [(0, min(end - start, 3), type_)], self._tags.scheme_name))
                needed.pop("O", None)
                error = f"expected a label file with the tags that spell every entity, here {', '.join(needed)}"
                raise BadLineError(
                    f"{error}, got others for {entities.described(index)}", column_of_value(line, "entities", index)
                )

    def _can_spell(self, length: int, type_: str) -> bool:
        """Whether the tags that `TagSet.encode` gives an entity exist and are found again."""
        if (length, type_) not in self._spelled:
            ids = [self._tags.ids.get(name) for name in self._tags.encode([(0, length, type_)], length)]
            known = [index for index in ids if index is not None]
            found = self._find_spans(torch.tensor(known, dtype=torch.int64), torch.tensor([0, len(known)])).tolist()
            self._spelled[length, type_] = found == [[0, 0, length, self._type_ids[type_]]]
        return self._spelled[length, type_]
