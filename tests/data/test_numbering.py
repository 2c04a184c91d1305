import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from bertorch.data import numbering, scratch, texts, tokens
from bertorch.data.numbering import numbered
from bertorch.tasks.in_batch_negatives import sentences_twice
from tests.conftest import TINY

FEW = st.sampled_from(["", "a", "b", "ab", "a\0", "好", "\ud800", *map(str, range(20))])


@pytest.fixture(autouse=True, scope="module")
def small_parts():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(numbering, "PART", 64)
        patch.setattr(numbering, "BLOCK", 50)
        patch.setattr(scratch, "IN_MEMORY", 2**10)
        patch.setattr(texts, "_BLOCK", 50)
        patch.setattr(tokens, "CHUNK", 50)
        yield


def by_dict(columns: list[list[str]]) -> tuple[list[str], list[list[int]]]:
    index_of: dict[str, int] = {}
    indices = [[index_of.setdefault(text, len(index_of)) for text in column] for column in columns]
    return list(index_of), [list(row) for row in zip(*indices, strict=True)]


@given(rows=st.integers(1, 3).flatmap(lambda width: st.lists(st.tuples(*[FEW] * width), min_size=1, max_size=40)))
def test_texts_are_numbered_as_they_first_come(rows):
    columns = [list(column) for column in zip(*rows, strict=True)]
    for chosen in (columns, columns[:1] * 2, [*columns, columns[0]]):
        found, numbers = numbered(chosen)
        assert (list(found), numbers.tolist()) == by_dict(chosen)
        assert numbers.dtype == np.int64
        assert numbers.flags.c_contiguous


def test_many_texts_over_many_parts():
    drawn = np.random.default_rng(0).integers(0, 1500, (2, 2000))
    columns = [[f"text {number}" for number in column] for column in drawn]
    found, numbers = numbered(columns)
    assert (list(found), numbers.tolist()) == by_dict(columns)


def test_memory_does_not_grow_with_the_file(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    path, peaks = tmp_path / "file.txt", []
    for lines in (500, 1500, 6000):  # the first for what is loaded once
        path.write_text("".join(f"第{number}句\n" for number in range(lines)))
        tracemalloc.start()
        data = sentences_twice(str(path), tokenizer=tokenizer, max_length=8, on_bad_line="stop")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(data.store) == lines
    assert peaks[2] < peaks[1] + 60_000  # the texts alone would take 400 kB
