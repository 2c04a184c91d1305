import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertorch.data import scratch
from bertorch.data.texts import columns_of

ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)


@pytest.fixture(autouse=True, scope="module", params=[0, 2**20])
def in_memory(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scratch, "IN_MEMORY", request.param)
        patch.setattr("bertorch.data.texts._BLOCK", 3)
        patch.setattr("bertorch.data.texts._READ", 4)
        yield


@given(rows=st.integers(1, 3).flatmap(lambda width: st.lists(st.tuples(*[ANY_TEXT] * width), min_size=1, max_size=9)))
def test_columns_are_those_of_lists(rows):
    columns = columns_of(iter(rows))
    expected = [list(column) for column in zip(*rows, strict=True)]
    assert [list(column) for column in columns] == expected
    for column, texts in zip(columns, expected, strict=True):
        assert len(column) == len(texts)
        assert [column[index] for index in range(-len(texts), len(texts))] == texts + texts
        assert column[1:-1] == texts[1:-1]
        assert column == texts
        assert column != [*texts, "more"]
        assert column != [*texts[:-1], f"{texts[-1]}more"]
        with pytest.raises(IndexError):
            column[len(texts)]
