"""Label Studio's export of entities, JSON or JSON-MIN, and the tasks with predictions that it imports.

JSON is an array of tasks with `data`, whose text is labelled, and `annotations`, each with a `result` of regions
`{"type": "labels", "value": {"start", "end", "text", "labels"}}`. JSON-MIN has the text and the regions of one
annotation in one object. The offsets are code points since 2022, and were units of UTF-16 before (pull request 1559 of
Label Studio); a database may hold both. They are checked by the `text` of each region, in which runs of white space may
be one.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from bertorch.data.entity_lines import other_keys
from bertorch.data.lines import BadLineError, first_few, shorten
from bertorch.errors import UserError
from bertorch.files import to_json
from bertorch.prepare.annotated_texts import AnnotatedText, checked_text
from bertorch.prepare.json_documents import read_json_documents
from bertorch.prepare.offsets import Annotated, Fit, LeftOut, Reading, counting_to_write, fit_text, offsets_of, settle

USUAL = "code_points"
ANNOTATIONS = ("latest", "first", "all")
_FORM = '{"data": {"text": "…"}, "annotations": [{"result": […]}]}'
_MIN_KEYS = ("annotator", "annotation_id", "created_at", "updated_at", "lead_time")  # of JSON-MIN
_LABELS = "labels"
_UNLABELLED = LeftOut("left out tasks without an annotation", "it has none, or only cancelled ones")


def read_label_studio(
    path: str, *, offsets: str, on_bad_row: str, text_key: str, to_name: str | None, annotations: str
) -> list[AnnotatedText]:
    """Read an export; the task's id and the other keys of its data are kept.

    Args:
        path: a file of JSON or JSON-MIN.
        offsets: what they count, a name of `OFFSETS`.
        on_bad_row: "stop", or "skip" for malformed tasks.
        text_key: the key of the text in the data of a task.
        to_name: its name in the labelling configuration; the entities of other texts are left out. None where tasks
            have one text. JSON-MIN does not say of which text a region is.
        annotations: which of several annotations of a task is taken, a name of `ANNOTATIONS`: the one updated last, the
            first one, or the entities of all. If one is marked as ground truth, it is that for the first two.

    Raises:
        UserError: a missing or empty file, malformed tasks, entities of several texts without `to_name`, or offsets
            that `auto` cannot tell apart.
    """
    texts_of_regions: set[str] = set()  # their names

    def parse(task: dict[str, Any]) -> Fit:
        is_full = isinstance(task.get("data"), dict)
        data = task["data"] if is_full else task
        text = checked_text(data.get(text_key), text_key, data)
        left_out: list[LeftOut] = []
        if is_full:
            chosen = _chosen(_annotations(task), annotations)
            if not chosen:
                return Fit({USUAL: Reading([], [_UNLABELLED])}, is_evidence=False)
            results = [region for annotation in chosen for region in annotation["result"]]
            more = {**({"id": task["id"]} if "id" in task else {}), **other_keys(data, {text_key})}
        else:
            results = list(_min_regions(task))
            if not results and task.keys().isdisjoint(_MIN_KEYS):
                raise BadLineError(f"expected a task as in {_FORM}, got the keys {first_few(list(task))}")
            more = other_keys(task, {text_key, *_MIN_KEYS, *(region["from_name"] for region in results)})
        regions = list(_regions(results, left_out))
        texts_of_regions.update(name for region in regions if (name := region.get("to_name")) is not None)
        if to_name is None and len(texts_of_regions) > 1:
            names = ", ".join(sorted(texts_of_regions))
            raise UserError(f"{path}: expected entities of one text, got those of {names}; say which with --to_name")
        annotated = list(_annotated(regions, to_name, left_out))
        return fit_text(text, annotated, more, left_out, offsets=offsets, usual=USUAL)

    rows = read_json_documents(path, parse, form=_FORM, on_bad_row=on_bad_row)
    return settle(path, rows, "say which with --offsets: code_points since 2022, utf16 before")


def _annotations(task: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The annotations of a task that are not cancelled; before version 1.0 they were completions."""
    found = task.get("annotations", task.get("completions", []))
    if not isinstance(found, list) or not all(
        isinstance(each, dict) and isinstance(each.get("result"), list) for each in found
    ):
        raise BadLineError(f"expected annotations, each with a result, as in {_FORM}, got {shorten(to_json(found))}")
    return [each for each in found if not each.get("was_cancelled")]


def _chosen(found: Sequence[Mapping[str, Any]], annotations: str) -> Sequence[Mapping[str, Any]]:
    if annotations == "all" or not found:
        return found
    candidates = [each for each in found if each.get("ground_truth")] or found

    def updated(index: int) -> tuple[str, int]:  # ISO 8601; without times the last one
        each = candidates[index]
        return str(each.get("updated_at") or each.get("created_at") or ""), index

    return [candidates[0 if annotations == "first" else max(range(len(candidates)), key=updated)]]


def _min_regions(task: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The regions of JSON-MIN in the form of the others: a list with the name of each control as its key."""
    for name, values in task.items():
        if isinstance(values, list) and any(isinstance(each, dict) and _is_region(each) for each in values):
            yield from ({"type": _type_of_region(value), "from_name": name, "value": value} for value in values)


def _is_region(value: Mapping[str, Any]) -> bool:
    return _labels_key(value) is not None or value.keys() >= {"start", "end"}


def _type_of_region(value: Any) -> str:
    return (_labels_key(value) if isinstance(value, dict) else None) or _LABELS


def _labels_key(value: Mapping[str, Any]) -> str | None:
    """The key with the labels of a region, which is its type: `labels`, `hypertextlabels` and others."""
    return next((key for key in value if key.endswith(_LABELS)), None)


def _regions(results: Iterable[Any], left_out: list[LeftOut]) -> Iterator[dict[str, Any]]:
    """The regions of texts among the results; the others are left out."""
    for result in results:
        if not isinstance(result, dict):
            raise BadLineError(f"expected results that are JSON objects, got {shorten(to_json(result))}")
        if result.get("type") != _LABELS:
            kind = f"left out results of the type {result.get('type')}"
            left_out.append(LeftOut(kind, shorten(to_json(result.get("value", result)))))
            continue
        name = result.get("to_name")
        if not isinstance(name, str | None):
            raise BadLineError(f"expected the name of a text as to_name, got {shorten(to_json(name))}")
        yield result


def _annotated(
    regions: Iterable[Mapping[str, Any]], to_name: str | None, left_out: list[LeftOut]
) -> Iterator[Annotated]:
    """The entities of regions, one for each label; those of other texts than `to_name` are left out."""
    for region in regions:
        value: Any = region.get("value")
        name = region.get("to_name")
        if to_name is not None and name not in (None, to_name):
            left_out.append(
                LeftOut("left out entities of other texts than --to_name", f"{name}: {shorten(to_json(value))}")
            )
            continue
        match value:
            case {"start": start, "end": end, "labels": [_, *_] as types}:
                yield from (Annotated(start, end, type_, value.get("text")) for type_ in types)
            case {"start": _, "end": _} if not value.get("labels"):
                left_out.append(LeftOut("left out regions without a label", shorten(to_json(value))))
            case _:
                expected = '{"start", "end", "text", "labels": ["TYPE"]}'
                raise BadLineError(f"expected the value of a region as {expected}, got {shorten(to_json(value))}")


def label_studio_lines(
    lines: Sequence[AnnotatedText], *, offsets: str, text_key: str, from_name: str, to_name: str, model_version: str
) -> Iterator[str]:
    """An array of tasks with predictions, which Label Studio imports, a task a line.

    The score of a prediction is the mean of those of its entities, if all have one.

    Args:
        lines: the entity lines; their other keys become keys of `data`.
        offsets: what they count, a name of `OFFSETS`.
        text_key: the key of the text in `data`, `$text` in the labelling configuration.
        from_name: the name of `<Labels>` there.
        to_name: the name of `<Text>` there.
        model_version: what the predictions are called.
    """
    counting = counting_to_write(lines, offsets, USUAL)
    yield "["
    for index, line in enumerate(lines):
        at = offsets_of(line.text, counting)
        result = []
        for number, entity in enumerate(line.entities):
            value = {
                "start": at[entity.start],
                "end": at[entity.end],
                "text": line.text[entity.start : entity.end],
                "labels": [entity.type],
            }
            region = {"id": f"e{number}", "from_name": from_name, "to_name": to_name, "type": "labels", "value": value}
            result.append(region if entity.score is None else {**region, "score": entity.score})
        prediction: dict[str, Any] = {"model_version": model_version, "result": result}
        scores = [entity.score for entity in line.entities if entity.score is not None]
        if scores and len(scores) == len(line.entities):
            prediction["score"] = sum(scores) / len(scores)
        task = {"data": {**other_keys(line.more, {text_key}), text_key: line.text}, "predictions": [prediction]}
        yield to_json(task) + ("," if index < len(lines) - 1 else "")
    yield "]"
