import errno
import json
import os
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

from bertorch import atomic, distributed
from bertorch.data import array_folder, cache, fingerprint, scratch
from bertorch.data.array_folder import array_names
from bertorch.data.cache import open_dataset
from bertorch.data.dataset import TextRows
from bertorch.data.tagged_sentences import read_tag_set
from bertorch.data.tags import TagSet
from bertorch.data.tokens import allow_ids_below
from bertorch.errors import UserError
from bertorch.tasks.in_batch_negatives import anchors_with_positives, sentences_twice
from bertorch.tasks.scored_pairs import scored_pairs
from bertorch.tasks.sentence_bert import labelled_pairs
from bertorch.tasks.sequence_task import labelled_texts, labelled_windows
from bertorch.tasks.tagging import tagged_sentences
from tests.conftest import MATCHING, NER, NESTED, PARAPHRASES, REVIEWS, SENTENCES, STS, TINY, run_processes

TAGS = TagSet(["O", "B-a", "I-a"], "bio", "labels.txt")
AS_TAGS = {"split": "characters", "as_spans": False}
OPTIONS = {"max_length": 24, "on_bad_line": "stop"}


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(TINY)


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("今天天气很好\n明天下雨\n今天天气很好\n")
    return str(path)


@pytest.fixture
def read(tokenizer):
    return partial(sentences_twice, tokenizer=tokenizer, **OPTIONS)


def arrays_of(dataset) -> dict[str, np.ndarray]:
    arrays = {name: getattr(dataset, name) for name in array_names(type(dataset)) if "." not in name}
    return {**arrays, **{f"store.{name}": array for name, array in vars(dataset.store).items()}}


def assert_same(one, other) -> None:
    assert type(one) is type(other)
    ours, theirs = arrays_of(one), arrays_of(other)
    assert list(ours) == list(theirs)
    for name, array in ours.items():
        assert array.dtype == theirs[name].dtype
        assert np.array_equal(array, theirs[name])


def folders(cache_dir: Path) -> list[Path]:
    return sorted(cache_dir.iterdir())


@pytest.mark.parametrize(
    ("function", "path", "options"),
    [
        (labelled_texts, REVIEWS / "dev.txt", {"label_names": ["negative", "positive"], "num_texts": 1}),
        (labelled_texts, MATCHING / "dev.txt", {"label_names": ["0", "1"], "num_texts": 2}),
        (
            labelled_windows,
            REVIEWS / "dev.txt",
            {"label_names": ["negative", "positive"], "num_texts": 1, "windows": 3},
        ),
        (labelled_windows, MATCHING / "dev.txt", {"label_names": ["0", "1"], "num_texts": 2, "windows": 2}),
        (labelled_pairs, MATCHING / "dev.txt", {"label_names": ["0", "1"]}),
        (scored_pairs, STS, {}),
        (sentences_twice, SENTENCES, {}),
        (anchors_with_positives, PARAPHRASES, {}),
        (
            tagged_sentences,
            NER / "dev.json",
            {"tags": read_tag_set(str(NER / "labels.txt"), "bios"), "strict": False, **AS_TAGS},
        ),
        (
            tagged_sentences,
            NESTED / "dev.json",
            {"tags": read_tag_set(str(NESTED / "labels.txt"), "bio"), "strict": False, **AS_TAGS, "as_spans": True},
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_same_dataset_from_memory_built_and_mapped(  # noqa: PLR0917
    function, path, options, tokenizer, tmp_path, log_lines
):
    read = partial(function, tokenizer=tokenizer, **options, **OPTIONS)
    expected = open_dataset(read, str(path), None)
    assert log_lines.pop(0) == f"{path}: reads and tokenises"
    assert log_lines == [line for line in log_lines if "out of the scheme" in line]
    for beginning in (
        f"{path}: {len(expected)} examples, tokenised in ",
        f"{path}: {len(expected)} examples from the cache ",
    ):
        log_lines.clear()
        dataset = open_dataset(read, str(path), str(tmp_path / "new" / "cache"))
        assert any(line.startswith(beginning) for line in log_lines)
        assert_same(dataset, expected)
        assert not any(array.flags.writeable for array in arrays_of(dataset).values())
        indices = np.array([3, 0, 2])
        for name, value in vars(dataset.batch(indices)).items():
            assert np.array_equal(value, vars(expected.batch(indices))[name])
        assert np.array_equal(dataset.lengths, expected.lengths)
    (folder,) = folders(tmp_path / "new" / "cache")
    assert folder.name.startswith(f"{function.__name__}-")


def test_the_name_of_the_file_does_not_count_but_its_content_does(read, texts, tmp_path, log_lines):
    open_dataset(read, texts, str(tmp_path / "cache"))
    copy = shutil.copy(texts, tmp_path / "copy.txt")
    open_dataset(read, copy, str(tmp_path / "cache"))
    assert f"{copy}: 3 examples from the cache " in log_lines[-1]
    Path(texts).write_text("今天天气很好\n明天下雨\n今天天气很坏\n")
    changed = open_dataset(read, texts, str(tmp_path / "cache"))
    assert len(changed.store) == 3
    assert len(folders(tmp_path / "cache")) == 2


def key(tokenizer, function=tagged_sentences, content="c", layout=(1, "x"), **changes) -> str:
    options = {"tokenizer": tokenizer, "max_length": 8, "on_bad_line": "stop"}
    if function is tagged_sentences:
        options |= {"tags": TAGS, "strict": False, **AS_TAGS}
    return fingerprint.fingerprint(partial(function, **(options | changes)), content, layout)


def test_whatever_shapes_the_result_gives_another_key(tokenizer, monkeypatch):
    labels = {"label_names": ["a", "b"], "num_texts": 1}
    keys = [
        key(tokenizer),
        key(tokenizer, content="d"),
        key(tokenizer, layout=(2, "x")),
        key(tokenizer, max_length=9),
        key(tokenizer, on_bad_line="skip"),
        key(tokenizer, strict=True),
        key(tokenizer, split="words"),
        key(tokenizer, as_spans=True),
        key(tokenizer, tags=TagSet(TAGS.tags, "bios", "labels.txt")),
        key(tokenizer, tags=TagSet(["O", "I-a", "B-a"], "bio", "labels.txt")),
        key(tokenizer, function=sentences_twice),
        key(tokenizer, function=anchors_with_positives),
        key(tokenizer, function=labelled_texts, **labels),
        key(tokenizer, function=labelled_texts, **labels | {"num_texts": 2}),
        key(tokenizer, function=labelled_texts, **labels | {"label_names": ["b", "a"]}),
    ]
    monkeypatch.setattr(fingerprint.tokenizers, "__version__", "0")
    keys.append(key(tokenizer))
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("slow", [False, True])
def test_the_tokenizer_is_part_of_the_key(slow, tmp_path):
    def load(vocabulary: list[str], **settings: object) -> PreTrainedTokenizerBase:
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        shutil.copytree(TINY, folder)
        (folder / "vocab.txt").write_text("\n".join(vocabulary))
        kind = (
            partial(BertTokenizerLegacy, folder / "vocab.txt")
            if slow
            else partial(AutoTokenizer.from_pretrained, folder)
        )
        return kind(**settings)

    vocabulary = (TINY / "vocab.txt").read_text().splitlines()
    tokenizer = load(vocabulary)
    before = key(tokenizer)
    tokenizer("今天", truncation=True, max_length=3)  # a call changes the state of a fast tokenizer, not its nature
    assert key(tokenizer) == before
    assert key(load(vocabulary)) == before  # loaded from another folder
    assert key(load([*vocabulary[:-2], vocabulary[-1], vocabulary[-2]])) != before
    assert key(load(vocabulary, do_lower_case=False)) != before
    tokenizer.truncation_side = "left"
    assert key(tokenizer) != before
    limited = load(vocabulary)
    allow_ids_below(limited, len(vocabulary) - 1)  # as for a model that has no embedding of the last token
    assert key(limited) != before


def test_an_argument_of_an_unknown_type_or_a_missing_one_is_refused(tokenizer):
    with pytest.raises(TypeError, match="tags: expected a plain value, a list, a TagSet or a tokenizer, got dict"):
        key(tokenizer, tags={})
    with pytest.raises(TypeError, match="strict: expected .*, got none"):
        fingerprint.fingerprint(partial(tagged_sentences, tokenizer=tokenizer, tags=TAGS, **OPTIONS), "c", None)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def zero(file: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


def another(file: Path) -> None:
    np.save(file, np.zeros(5))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *(("store.input_ids.npy", damage) for damage in (truncate, empty, zero, another, Path.unlink)),
        *(("meta.json", damage) for damage in (truncate, empty, zero, Path.unlink)),
    ],
)
def test_a_damaged_dataset_is_built_again(  # noqa: PLR0917
    damage, name, read, texts, tmp_path, log_lines
):
    expected = open_dataset(read, texts, None)
    open_dataset(read, texts, str(tmp_path / "cache"))
    (folder,) = folders(tmp_path / "cache")
    damage(folder / name)
    log_lines.clear()
    assert_same(open_dataset(read, texts, str(tmp_path / "cache")), expected)
    assert [f"{folder}: is damaged ({name}" in log_lines[0], "tokenised in" in log_lines[2]] == [True, True]
    open_dataset(read, texts, str(tmp_path / "cache"))
    assert "from the cache" in log_lines[-1]
    assert folders(tmp_path / "cache") == [folder]


class KilledError(BaseException):
    """Stands for a signal: no one catches it."""


def test_a_half_built_dataset_is_not_used_and_removed_by_the_next_run(read, texts, tmp_path, monkeypatch, log_lines):
    cache_dir = tmp_path / "cache"
    with monkeypatch.context() as patch:
        patch.setattr(atomic, "remove", lambda *_: None)  # as if it had no time for it
        patch.setattr(cache, "to_disk", lambda *_: (_ for _ in ()).throw(KilledError))
        with pytest.raises(KilledError):
            open_dataset(read, texts, str(cache_dir))
    (leftover,) = folders(cache_dir)
    assert (leftover / "store.input_ids.npy").exists()
    open_dataset(read, texts, str(cache_dir))
    assert "tokenised in" in log_lines[-1]
    assert leftover not in folders(cache_dir)
    assert len(folders(cache_dir)) == 1


def test_what_was_warned_of_is_said_again(tokenizer, tmp_path, log_lines):
    path = tmp_path / "train.json"
    lines = [{"text": ["我", "们"], "label": ["O", "I-a"]}, {"text": ["我"], "label": ["B-b"]}]
    path.write_text("\n".join(map(json.dumps, lines)))
    options = {"tokenizer": tokenizer, "tags": TAGS, "strict": False, **AS_TAGS, "max_length": 8, "on_bad_line": "skip"}
    read = partial(tagged_sentences, **options)
    open_dataset(read, str(path), str(tmp_path / "cache"))
    warnings = log_lines[1:-1]
    assert len(warnings) == 2
    assert warnings[0].startswith(f"{path}: skipped malformed lines: 1; the first: {path}:2")
    log_lines.clear()
    path = path.rename(tmp_path / "renamed.json")
    open_dataset(read, str(path), str(tmp_path / "cache"))
    assert log_lines[1:] == [line.replace("train.json:", "renamed.json:") for line in warnings]
    assert log_lines[1] != warnings[0]


def test_a_folder_that_cannot_be_written_is_an_error_before_the_work(read, texts):
    with pytest.raises(UserError, match=f"--cache_dir {texts}/cache: expected a folder that can be written"):
        open_dataset(partial(read, tokenizer=None), f"{texts}", f"{texts}/cache")


def test_tokens_that_may_not_be_read_are_no_damage(read, texts, tmp_path, monkeypatch):
    """They are of another user, and would be renamed or built in vain."""
    open_dataset(read, str(texts), str(tmp_path / "cache"))
    before = sorted((tmp_path / "cache").rglob("*"))

    def forbidden(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "read_text", forbidden)
    with pytest.raises(UserError, match="expected a folder whose tokens this user may read, got those of another user"):
        open_dataset(read, str(texts), str(tmp_path / "cache"))
    assert sorted((tmp_path / "cache").rglob("*")) == before


def test_a_full_disk_is_an_error_and_leaves_nothing(read, texts, tmp_path, monkeypatch):
    def full(file, array, **_):
        file.write_bytes(b"beginning")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(array_folder.np, "save", full)
    with pytest.raises(UserError, match="has room for the tokens of .*texts.txt, got: No space left on device; choose"):
        open_dataset(read, texts, str(tmp_path / "cache"))
    assert folders(tmp_path / "cache") == []


def test_a_disk_that_is_full_before_all_is_tokenised_is_an_error_too(read, texts, tmp_path, monkeypatch):
    monkeypatch.setattr(scratch, "IN_MEMORY", 0)
    monkeypatch.setattr(scratch.tempfile, "TemporaryFile", lambda **_: Path("/dev/full").open("w+b", buffering=0))  # noqa: SIM115
    with pytest.raises(
        UserError, match=f"--cache_dir {tmp_path}/cache: expected room .*, got: No space left on device"
    ):
        open_dataset(read, texts, str(tmp_path / "cache"))
    assert folders(tmp_path / "cache") == []


def test_errors_in_the_file_are_those_without_a_cache_and_leave_nothing(read, texts, tmp_path):
    cache_dir = tmp_path / "cache"
    with pytest.raises(UserError, match="nowhere.txt: expected a readable text file"):
        open_dataset(read, "nowhere.txt", str(cache_dir))
    Path(texts).write_text("a\tb\n")
    with pytest.raises(UserError, match="texts.txt:1: expected 1 column"):
        open_dataset(read, texts, str(cache_dir))
    assert folders(cache_dir) == []


def changing_while_read(path: str, *, tokenizer: PreTrainedTokenizerBase) -> TextRows:
    dataset = sentences_twice(path, tokenizer=tokenizer, **OPTIONS)
    with Path(path).open("a") as file:
        file.write("后天\n")
    return dataset


def test_a_file_that_changes_while_it_is_read_is_not_cached(tokenizer, texts, tmp_path):
    with pytest.raises(UserError, match="texts.txt: changed while it was read"):
        open_dataset(partial(changing_while_read, tokenizer=tokenizer), texts, str(tmp_path / "cache"))
    assert folders(tmp_path / "cache") == []


def overtaken(path: str, *, tokenizer: PreTrainedTokenizerBase, other: str, cache_dir: str) -> TextRows:
    """Another run builds the same dataset while this one does."""
    if not Path(other).exists():
        Path(other).touch()
        read = partial(overtaken, tokenizer=tokenizer, other=other, cache_dir=cache_dir)
        open_dataset(read, path, cache_dir)
    return sentences_twice(path, tokenizer=tokenizer, **OPTIONS)


def test_of_two_runs_the_first_to_end_gives_its_dataset_to_both(tokenizer, read, texts, tmp_path):
    options = {"tokenizer": tokenizer, "other": str(tmp_path / "started"), "cache_dir": str(tmp_path / "cache")}
    dataset = open_dataset(partial(overtaken, **options), texts, options["cache_dir"])
    assert_same(dataset, open_dataset(read, texts, None))
    assert len(folders(tmp_path / "cache")) == 1


def in_each_process(texts: str, cache_dir: Path, *, machines: bool) -> None:
    """Open a dataset; each process is the first one of a machine, or they are all on one."""
    lines: list[str] = []
    handler = cache.logger.add(lambda message: lines.append(message.record["message"]), level="INFO")
    if machines:
        os.environ["LOCAL_RANK"] = "0"
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    read = partial(sentences_twice, tokenizer=tokenizer, **OPTIONS)
    distributed.barrier()
    dataset = open_dataset(read, texts, str(cache_dir))
    cache.logger.remove(handler)
    assert_same(dataset, open_dataset(read, texts, None))
    assert machines or ("from the cache" in lines[-1]) == (distributed.rank() > 0)
    with pytest.raises(UserError, match="nowhere.txt: expected a readable"):  # on every process; none waits for ever
        open_dataset(read, "nowhere.txt", str(cache_dir))
    Path(f"{texts}.{distributed.rank()}").touch()


@pytest.mark.slow
@pytest.mark.parametrize("machines", [False, True])
def test_processes_that_open_at_once_share_one_dataset(machines, texts, tmp_path):
    Path(texts).write_text("".join(f"第{number}句话\n" for number in range(20_000 if machines else 10)))
    run_processes(3, partial(in_each_process, machines=machines), texts, tmp_path / "cache")
    assert len(folders(tmp_path / "cache")) == 1
    assert len(list(tmp_path.glob("texts.txt.*"))) == 3


def test_a_file_whose_name_is_not_utf8_is_cached(read, texts, tmp_path):
    path = f"{tmp_path}/\udcff\n.txt"
    shutil.copy(texts, path)
    assert_same(open_dataset(read, path, str(tmp_path / "cache")), open_dataset(read, texts, None))
