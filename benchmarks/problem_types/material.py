"""Files for the cases, made from the public datasets as `data/prepare.py` leaves them."""

import json
import random
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from transformers import AutoTokenizer

from benchmarks.end_to_end.peer_script import columns

NEGATIVES = 4  # of a group


def entity_types(source: Path, target: Path, *, most: int | None = None) -> None:
    """Which types of entities occur in a sentence: multi-label lines from tagged ones, the first `most` of them."""
    types: dict[str, None] = {}
    for name in ("train", "dev"):
        rows = []
        for line in (
            (source / f"{name}.json").read_text(encoding="utf-8").splitlines()[: most if name == "train" else None]
        ):
            sentence = json.loads(line)
            found = sorted({tag.partition("-")[2] for tag in sentence["label"]} - {""})
            types |= dict.fromkeys(found)
            rows.append(("".join(sentence["text"]).replace("\t", " "), ",".join(found)))
        _write(target / f"{name}.txt", [row for row in rows if row[0].strip()])
    _write(target / "labels.txt", [(name,) for name in sorted(types)])


def thinned(source: Path, target: Path, *, largest: int, ratio: float) -> None:
    """Of the k-th of C classes the first `largest / ratio ** (k / (C - 1))` training examples; dev stays whole."""
    names = columns(str(source / "labels.txt"))[0]
    left = {name: round(largest / ratio ** (rank / (len(names) - 1))) for rank, name in enumerate(names)}
    rows = []
    for text, name in zip(*columns(str(source / "train.tsv")), strict=True):
        if left[name]:
            rows.append((text, name))
            left[name] -= 1
    _write(target / "train.txt", rows)
    _write(target / "dev.txt", zip(*columns(str(source / "dev.tsv")), strict=True))
    _write(target / "labels.txt", [(name,) for name in names])


def cut_texts(source: Path, target: Path, *, model: str, length: int) -> None:
    """Dev examples that `length` tokens cut; train stays whole."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = list(zip(*columns(str(source / "dev.tsv")), strict=True))
    tokens = tokenizer([text for text, _ in rows])["input_ids"]
    _write(target / "dev.txt", [row for row, ids in zip(rows, tokens, strict=True) if len(ids) > length])
    _write(target / "train.txt", zip(*columns(str(source / "train.tsv")), strict=True))
    _write(target / "labels.txt", [(name,) for name in columns(str(source / "labels.txt"))[0]])


def near_misses(source: Path, target: Path, *, groups: int) -> None:
    """Questions to rank: paraphrases as positives, pairs labelled 0 as negatives, topped up with other questions.

    A training group has one positive and `NEGATIVES` negatives; a dev query all its candidates, and as many others
    as bring them to ten.
    """
    chance = random.Random(0)
    for name in ("train", "dev"):
        positives: defaultdict[str, set[str]] = defaultdict(set)
        negatives: defaultdict[str, set[str]] = defaultdict(set)
        texts: set[str] = set()
        for one, other, label in zip(*columns(str(source / f"{name}.txt")), strict=True):
            for query, candidate in ((one, other), (other, one)):
                (positives if label == "1" else negatives)[query].add(candidate)
            texts |= {one, other}
        pool = sorted(texts)
        queries = sorted(query for query in positives if negatives[query])  # with a near miss
        chance.shuffle(queries)
        rows: list[tuple[str, ...]] = []
        for query in queries:
            right, wrong = sorted(positives[query] - {query}), sorted(negatives[query] - positives[query] - {query})
            if not right or not wrong:
                continue
            size = NEGATIVES if name == "train" else 9
            while len(wrong) < size:
                other = chance.choice(pool)
                if other not in positives[query] and other != query and other not in wrong:
                    wrong.append(other)
            if name == "train":
                rows.append((query, right[0], *wrong[:size]))
            else:
                lines = [(query, text, "1") for text in right[:3]] + [(query, text, "0") for text in wrong[:size]]
                chance.shuffle(lines)
                rows += lines
        _write(target / f"{name}.txt", rows[: groups if name == "train" else None])


def scored_pairs(source: Path, target: Path) -> None:
    """STS-B as it is."""
    for name in ("train", "dev"):
        _write(target / f"{name}.txt", zip(*columns(str(source / f"sts-b-{name}.txt")), strict=True))


def _write(path: Path, rows: Iterable[tuple[str, ...]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")
