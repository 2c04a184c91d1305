import json

import pytest

from bertorch.errors import UserError
from bertorch.prepare import json_documents
from bertorch.prepare.json_documents import read_json_documents

OPTIONS = {"form": "{…}", "on_bad_row": "stop"}


class Searched(str):
    """A text that knows how many of its characters were searched."""

    __slots__ = ("characters",)

    def _note(self, start, end):
        self.characters = getattr(self, "characters", 0) + end - start

    def count(self, what, start, end):
        self._note(start, end)
        return super().count(what, start, end)

    def rfind(self, what, start, end):
        self._note(start, end)
        return super().rfind(what, start, end)


@pytest.mark.parametrize("indent", [None, 1])
def test_the_place_of_an_item_takes_no_second_look_at_the_text_before_it(file, monkeypatch, indent):
    """Label Studio writes its array on one line."""
    items = [{"text": "张三", "id": number} for number in range(200)]
    path = file(json.dumps(items, indent=indent))
    read = []
    decoded = json_documents._decoded
    monkeypatch.setattr(json_documents, "_decoded", lambda path: read.append(Searched(decoded(path))) or read[-1])
    assert [item for _, item in read_json_documents(path, lambda item: item, **OPTIONS)] == items
    assert read[0].characters <= 3 * len(read[0])


@pytest.mark.parametrize(
    ("content", "where"),
    [("[{}, 7]", "1:6"), ("[{},\n 7]", "2:2"), ("\n[\n{},\n{}, 7]", "4:5"), ("[\n{}, {}, 7]", "2:9")],
)
def test_line_and_column_of_an_item(file, content, where):
    path = file(content)
    with pytest.raises(UserError) as error:
        list(read_json_documents(path, lambda item: item, **OPTIONS))
    assert f"{path}:{where}: expected a JSON object" in str(error.value)
