"""Prompts by the role of a text: what is tokenised, what counts as the same text, what is refused."""

from functools import partial

import pytest
from transformers import AutoTokenizer

from bertorch.data.cache import open_dataset
from bertorch.data.dataset import PromptedRows, TextRows
from bertorch.data.prompts import NO_PROMPTS, Prompts, prompts_for_training
from bertorch.data.retrieval_dataset import RetrievalDataset
from bertorch.errors import UserError
from bertorch.tasks.cosine_mse import CosineMSE
from bertorch.tasks.in_batch_negatives import InBatchNegatives, anchors_with_positives
from bertorch.tasks.retrieval import dev_reader
from bertorch.tasks.scored_pairs import scored_pairs
from tests.conftest import TINY

PROMPTS = Prompts.of_roles("查询：", "文章：")
OPTIONS = {"max_length": 12, "on_bad_line": "stop"}
IN_BATCH = InBatchNegatives(margin=0.2, scale=20)
COSINE_MSE = CosineMSE((0.0, 5.0))


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(TINY)


def ids_of(rows: TextRows, row: int, column: int) -> list[int]:
    sentence = rows.sentences[row, column]
    return rows.store.input_ids[rows.store.offsets[sentence] : rows.store.offsets[sentence + 1]].tolist()


def test_the_prompt_of_each_role():
    assert [PROMPTS.before(role) for role in ("query", "passage", "none")] == ["查询：", "文章：", ""]
    assert [NO_PROMPTS.before(role) for role in ("query", "passage", "none", None)] == [""] * 4
    assert Prompts("q", "p", "d").before(None) == "d"
    with pytest.raises(UserError, match="expected to be told what the texts are, .*; say so with --prompt"):
        PROMPTS.before(None)
    with pytest.raises(UserError, match="expected a prompt of query, passage, none, got 'document'"):
        PROMPTS.before("document")
    with pytest.raises(UserError, match="the prompt query cannot be applied; without it .* --prompt none"):
        Prompts(None, "").before("query")


def test_in_pairs_the_first_text_is_the_query():
    columns = [["a", "b"], ["c", "d"], ["e", "f"]]
    assert [list(column) for column in PROMPTS.of_pairs(columns)] == [
        ["查询：a", "查询：b"], ["文章：c", "文章：d"], ["文章：e", "文章：f"]
    ]  # fmt: skip
    assert [list(column) for column in Prompts("q", "p", "d").of_pairs(columns[:2])] == [["da", "db"], ["dc", "dd"]]
    assert NO_PROMPTS.of_pairs(columns) == columns
    only_query = Prompts.of_roles("q", "")
    assert [list(column) for column in only_query.of_pairs(columns[:2])] == [["qa", "qb"], ["c", "d"]]
    assert "查询：a" in PROMPTS.of_pairs(columns)[0]
    assert "文章：a" not in PROMPTS.of_pairs(columns)[0]


def test_rows_have_the_tokens_of_prompt_and_text(tokenizer, tmp_path):
    path = tmp_path / "train.txt"
    path.write_text("天\t地\t人\n地\t天\t很长的一段文字说了很多很多\n")
    rows = IN_BATCH.reader(PROMPTS)(str(path), tokenizer=tokenizer, **OPTIONS)
    assert isinstance(rows, PromptedRows)
    for row, line in enumerate(path.read_text().splitlines()):
        for column, text in enumerate(line.split("\t")):
            expected = tokenizer(("查询：" if column == 0 else "文章：") + text, truncation=True, max_length=12)
            assert ids_of(rows, row, column) == expected["input_ids"]
    assert rows.cut([0, 1]).tolist() == [False, True]  # without the prompt it would fit


def test_a_text_is_the_same_as_query_and_as_passage(tokenizer, tmp_path):
    """So that rows that share it are not negatives of each other, as without prompts."""
    path = tmp_path / "train.txt"
    path.write_text("天\t地\n地\t人\n人\t天\n")
    read = partial(IN_BATCH.reader(PROMPTS), tokenizer=tokenizer, **OPTIONS)
    texts = read(str(path)).batch([0, 1, 2]).text_ids.tolist()
    assert texts == [[0, 1], [1, 2], [2, 0]]
    assert len(read(str(path)).store) == 6  # each text after either prompt
    plain = anchors_with_positives(str(path), tokenizer=tokenizer, **OPTIONS)
    assert plain.batch([0, 1, 2]).text_ids.tolist() == texts


def test_scored_pairs_have_prompts(tokenizer, tmp_path):
    """For training and for evaluation."""
    path = tmp_path / "dev.txt"
    path.write_text("天\t地\t1\n天\t天\t5\n")
    for read in (partial(scored_pairs, prompts=PROMPTS), COSINE_MSE.reader(PROMPTS)):
        pairs = read(str(path), tokenizer=tokenizer, **OPTIONS)
        assert ids_of(pairs, 1, 0) == tokenizer("查询：天")["input_ids"]
        assert ids_of(pairs, 1, 1) == tokenizer("文章：天")["input_ids"]


def test_every_cache_key_has_the_prompts(tokenizer, tmp_path):
    train, dev = tmp_path / "train.txt", tmp_path / "dev.txt"
    train.write_text("天\t地\n")
    dev.write_text("天\t地\t1\n天\t天\t5\n")
    for prompts in (NO_PROMPTS, PROMPTS, Prompts.of_roles("查询：", "章："), Prompts.of_roles("查询：文章：", "")):
        readers = (
            (train, IN_BATCH.reader(prompts)),
            (dev, COSINE_MSE.reader(prompts)),
            (dev, partial(scored_pairs, prompts=prompts)),
            (train, dev_reader(str(train), scored_pairs, prompts)),
        )
        for path, read in readers:
            bound = partial(read, tokenizer=tokenizer, **OPTIONS)
            for _ in range(2):
                cached = open_dataset(bound, str(path), str(tmp_path / "cache"))
                assert ids_of(cached, 0, 0) == ids_of(bound(str(path)), 0, 0)
                texts = cached.batch([0]).text_ids
                assert texts is None or texts.tolist() == [[0, 1]] or isinstance(cached, RetrievalDataset)
    assert len(list((tmp_path / "cache").iterdir())) == 16


def test_prompts_for_training(tokenizer):
    assert prompts_for_training(None, "", tokenizer, 8) == NO_PROMPTS
    assert IN_BATCH.reader(NO_PROMPTS) is anchors_with_positives
    assert prompts_for_training("q：", None, tokenizer, 8) == ("q：", "", None)
    assert prompts_for_training("一二三四五", None, tokenizer, 8).query == "一二三四五"
    with pytest.raises(UserError, match=r"--passage_prompt: expected a prompt that leaves room .* needs at least 9 "):
        prompts_for_training(None, "一二三四五六", tokenizer, 8)
    with pytest.raises(UserError, match="--query_prompt: expected a text in UTF-8"):
        prompts_for_training("\udcff", None, tokenizer, 8)
