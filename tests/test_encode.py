"""The command as a user starts it, against sentence-transformers on the same folder."""

import errno
import json
import shutil

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from bertorch import encode
from bertorch.data.teacher import TeacherRows, TextsDigest
from bertorch.encoder.sentence_encoder import SentenceEncoder
from bertorch.errors import UserError
from bertorch.inference import engine, vectors
from bertorch.inference.vectors import VectorFile
from bertorch.writer_lock import only_writer
from tests.conftest import SENTENCES, run_processes

TEXTS = SENTENCES.read_text().splitlines()[:60]


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "WINDOW", 16)
    path = tmp_path / "in.txt"
    path.write_text("\n".join(TEXTS))
    return path


def run(folder, source, **settings):
    encode.run(encode.EncodeConfig(model_dir=str(folder), input_file=str(source), **settings))


def expected_of(folder):
    return SentenceTransformer(str(folder), device="cpu").encode(TEXTS, show_progress_bar=False)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dtype", "tolerance"), [("simcse", "float32", 1e-5), ("nli", "float16", 1e-3)])
def test_vectors(name, dtype, tolerance, folders, source):
    tmp_path = source.parent
    run(folders[name], source, output_file=str(tmp_path / "out.npy"), dtype=dtype, normalize=True)
    vectors = np.load(tmp_path / "out.npy")
    expected = expected_of(folders[name])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert vectors.dtype == np.dtype(dtype)
    np.testing.assert_allclose(vectors, expected, atol=tolerance)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.txt", "out.npy", "out.npy.json"]
    digest = TextsDigest()
    digest.update(TEXTS)
    teacher = TeacherRows.open(str(tmp_path / "out.npy"))
    assert (teacher.texts, teacher.label_names) == (digest.value, None)


def test_another_librarys_folder_is_identified_by_all_of_its_files(folders, source, tmp_path):
    peer = SentenceTransformer(str(folders["nli"]), device="cpu")
    peer.save(str(tmp_path / "model"))
    settings = {"output_file": str(tmp_path / "out.npy")}
    run(tmp_path / "model", source, **settings)
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected_of(tmp_path / "model"), atol=1e-5)
    run(tmp_path / "model", source, **settings)  # left as it is
    pooling = tmp_path / "model" / "1_Pooling" / "config.json"
    pooling.write_text(pooling.read_text().replace('"cls"', '"max"'))
    with pytest.raises(UserError, match="holds vectors .* differs in content of --model_dir, 1_Pooling/config.json"):
        run(tmp_path / "model", source, **settings)


def test_vectors_depend_on_the_tokenizer(folders, source, tmp_path):
    shutil.copytree(folders["simcse"], tmp_path / "model")
    settings = {"output_file": str(tmp_path / "out.npy")}
    run(tmp_path / "model", source, **settings)
    run(tmp_path / "model", source, **settings)  # left as it is
    tokenizer = tmp_path / "model" / "tokenizer.json"
    content = json.loads(tokenizer.read_text())
    content["normalizer"] = None
    tokenizer.write_text(json.dumps(content))
    with pytest.raises(UserError, match="holds vectors .* differs in content of --model_dir, tokenizer.json"):
        run(tmp_path / "model", source, **settings)


def test_an_interrupted_run_goes_on_and_a_finished_one_is_left(folders, source, tmp_path, monkeypatch):
    target = str(tmp_path / "out.npy")
    append, appended = VectorFile.append, []

    def interrupted(self, vectors):
        if len(appended) == 2:
            raise KeyboardInterrupt
        appended.append(len(vectors))
        append(self, vectors)

    monkeypatch.setattr(VectorFile, "append", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(folders["simcse"], source, output_file=target)
    assert appended == [16, 16]
    assert not (tmp_path / "out.npy").exists()

    counted = []
    monkeypatch.setattr(
        VectorFile, "append", lambda self, vectors: (counted.append(len(vectors)), append(self, vectors))
    )
    run(folders["simcse"], source, output_file=target)
    assert counted == [16, 12]
    np.testing.assert_allclose(np.load(target), expected_of(folders["simcse"]), atol=1e-5)
    run(folders["simcse"], source, output_file=target)
    assert counted == [16, 12]
    with pytest.raises(UserError, match="holds vectors of another run, which differs in --normalize"):
        run(folders["simcse"], source, output_file=target, normalize=True)
    run(folders["simcse"], source, output_file=target, normalize=True, overwrite=True)
    np.testing.assert_allclose(np.linalg.norm(np.load(target), axis=1), 1, atol=1e-5)


def test_an_interruption_when_only_the_name_is_missing(folders, source, tmp_path, monkeypatch):
    target = tmp_path / "out.npy"
    run(folders["simcse"], source, output_file=str(target))
    whole = target.read_bytes()
    target.rename(tmp_path / "out.npy.partial")
    monkeypatch.setattr(VectorFile, "open", lambda self: pytest.fail("nothing is left to encode"))
    run(folders["simcse"], source, output_file=str(target))
    assert target.read_bytes() == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.txt", "out.npy", "out.npy.json"]


def test_a_file_that_was_never_begun_is_not_taken_for_done(folders, source, tmp_path, monkeypatch):
    """The process ends between the new file, full of zeros, and its record; the old vectors were complete."""
    target = tmp_path / "out.npy"
    run(folders["simcse"], source, output_file=str(target))
    whole = target.read_bytes()

    def ended(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(VectorFile, "_write_record", ended)
        with pytest.raises(KeyboardInterrupt):
            run(folders["simcse"], source, output_file=str(target), overwrite=True)
    run(folders["simcse"], source, output_file=str(target))
    assert target.read_bytes() == whole

    monkeypatch.setattr(VectorFile, "_reserved", ended)
    with pytest.raises(KeyboardInterrupt):
        run(folders["simcse"], source, output_file=str(target), overwrite=True)
    assert target.read_bytes() == whole


def test_no_room_on_the_disk(folders, source, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    target = tmp_path / "out.npy"
    target.write_text("mine")
    with monkeypatch.context() as patched:
        patched.setattr(vectors.os, "posix_fallocate", full)
        with pytest.raises(UserError, match="partial: expected a file that can be written, got: .*No space left"):
            run(folders["simcse"], source, output_file=str(target), overwrite=True)
    assert target.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.txt", "out.npy"]
    monkeypatch.setattr(VectorFile, "_write_record", full)
    with pytest.raises(UserError, match="expected a file that can be written, got: .*No space left"):
        run(folders["simcse"], source, output_file=str(target), overwrite=True)


def test_a_file_system_that_takes_no_room_beforehand(folders, source, tmp_path, monkeypatch):
    def unknown(*_):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(vectors.os, "posix_fallocate", unknown)
    run(folders["simcse"], source, output_file=str(tmp_path / "out.npy"))
    assert np.load(tmp_path / "out.npy").shape == (len(TEXTS), 128)


def test_an_output_that_is_a_link_stays_one(folders, source, tmp_path):
    link, target = tmp_path / "link.npy", tmp_path / "target.npy"
    link.symlink_to("target.npy")
    run(folders["simcse"], source, output_file=str(link))
    assert link.is_symlink()
    assert np.load(target).shape == (len(TEXTS), 128)


def test_the_arithmetic_is_compared_by_what_it_is(folders, source, tmp_path):
    """`auto` may be another one on another machine."""
    target = str(tmp_path / "out.npy")
    run(folders["simcse"], source, output_file=target)
    run(folders["simcse"], source, output_file=target, precision="fp32")
    with pytest.raises(UserError, match="holds vectors of another run, which differs in --precision"):
        run(folders["simcse"], source, output_file=target, precision="bf16")


def test_running_out_of_memory_is_told(folders, source, tmp_path, monkeypatch):
    def out_of_memory(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    monkeypatch.setattr(SentenceEncoder, "forward", out_of_memory)
    expected = r"cpu: expected enough memory for a batch of \d+ tokens, got too little; lower --batch_size .*\nCUDA out"
    with pytest.raises(UserError, match=expected):
        run(folders["simcse"], source, output_file=str(tmp_path / "out.npy"))


def test_another_encoding_into_the_same_file_has_to_wait(folders, source, tmp_path):
    (tmp_path / "link.npy").symlink_to("out.npy")
    run(folders["simcse"], source, output_file=str(tmp_path / "out.npy"))
    whole = (tmp_path / "out.npy").read_bytes()
    with only_writer(tmp_path / ".out.npy.lock", "a first one"):
        for name in ("out.npy", "link.npy"):
            with pytest.raises(UserError, match=f"--output_file .*{name}: expected no other command .* got process"):
                run(folders["simcse"], source, output_file=str(tmp_path / name), overwrite=True)
        run(folders["simcse"], source, output_file=str(tmp_path / "another.npy"))
    assert (tmp_path / "out.npy").read_bytes() == whole


def test_prepared_links_are_not_written_through(folders, source, tmp_path):
    victims = [tmp_path / name for name in ("victim", "victim.json")]
    links = [tmp_path / name for name in ("out.npy.partial", "out.npy.json")]
    for victim, link in zip(victims, links, strict=True):
        victim.write_text('{"made_of": {}, "done": 0}')
        link.symlink_to(victim)
    run(folders["simcse"], source, output_file=str(tmp_path / "out.npy"))
    assert np.load(tmp_path / "out.npy").shape == (len(TEXTS), 128)
    assert {victim.read_text() for victim in victims} == {'{"made_of": {}, "done": 0}'}


def test_a_file_that_is_begun_anew_is_not_taken_for_the_old_one(folders, source, tmp_path, monkeypatch):
    """The first process ends in the middle, the second one while it reserves its room."""
    target, append = tmp_path / "out.npy", VectorFile.append

    def ended(*_):
        raise KeyboardInterrupt

    def interrupted(self, vectors):
        append(self, vectors)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(VectorFile, "append", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(folders["simcse"], source, output_file=str(target))
    with monkeypatch.context() as patched:
        patched.setattr(VectorFile, "_write_record", ended)
        with pytest.raises(KeyboardInterrupt):
            run(folders["simcse"], source, output_file=str(target), overwrite=True)
    run(folders["simcse"], source, output_file=str(target))
    np.testing.assert_allclose(np.load(target), expected_of(folders["simcse"]), atol=1e-5)


def test_the_file_of_another_program_is_not_replaced(folders, source, tmp_path):
    (tmp_path / "out.npy").write_text("mine")
    with pytest.raises(UserError, match="out.npy: expected no file of this name"):
        run(folders["simcse"], source, output_file=str(tmp_path / "out.npy"))


@pytest.mark.parametrize("ending", ["", ".json", ".partial"])
def test_no_file_that_is_read_is_replaced(ending, folders, source, tmp_path):
    read = source.rename(tmp_path / f"out.npy{ending}")
    (tmp_path / "link.npy").symlink_to("out.npy")
    other = SENTENCES
    for output in ("out.npy", "link.npy"):
        for inputs in ({"source": read}, {"source": other, "nearest": 1, "corpus_file": str(read)}):
            with pytest.raises(UserError, match=f"out.npy{ending}: expected another file for the output, got one that"):
                run(folders["simcse"], **inputs, output_file=str(tmp_path / output), overwrite=True)
    assert read.read_text() == "\n".join(TEXTS)


@pytest.mark.slow
def test_neighbours(folders, source, tmp_path, capsys):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(reversed(TEXTS)))
    run(folders["batchneg"], source, nearest=3, corpus_file=str(corpus))
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    vectors = expected_of(folders["batchneg"])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = np.sort(vectors @ vectors.T, axis=1)[:, ::-1]
    assert [(int(row[0]), int(row[1])) for row in rows] == [
        (query, rank) for query in range(1, 61) for rank in (1, 2, 3)
    ]
    np.testing.assert_allclose([float(row[2]) for row in rows], cosines[:, :3].ravel(), atol=1e-5)
    assert all(row[4] == TEXTS[60 - int(row[3])] for row in rows)
    assert sum(TEXTS[int(row[0]) - 1] == row[4] for row in rows if row[1] == "1") > 55


def test_the_first_dimensions(folders, source, tmp_path, log_lines, capsys):
    settings = {"output_file": str(tmp_path / "out.npy"), "dimensions": 64}
    run(folders["cosent"], source, **settings)
    cut = expected_of(folders["cosent"])[:, :64]
    cut /= np.linalg.norm(cut, axis=1, keepdims=True)
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), cut, atol=1e-5)
    run(folders["cosent"], source, normalize=True, **settings)  # the same vectors
    with pytest.raises(UserError, match="holds vectors of another run, which differs in size"):
        run(folders["cosent"], source, **(settings | {"dimensions": 32}))
    with pytest.raises(UserError, match="dimensions: expected 1 to the 128 of an embedding, got 129"):
        run(folders["cosent"], source, **(settings | {"dimensions": 129}))

    run(folders["cosent"], source, dimensions=64, nearest=2, corpus_file=str(source))
    cosines = np.sort(cut @ cut.T, axis=1)[:, ::-1]
    found = [float(line.split("\t")[2]) for line in capsys.readouterr().out.splitlines()]
    np.testing.assert_allclose(found, cosines[:, :2].ravel(), atol=1e-5)
    assert not any("--dimensions" in line for line in log_lines)


@pytest.mark.parametrize(("name", "trained"), [("cosent", "128, 64, 32"), ("simcse", "128")])
def test_dimensions_that_were_not_trained(name, trained, folders, source, log_lines):
    run(folders[name], source, output_file=str(source.parent / "out.npy"), dimensions=100)
    assert np.load(source.parent / "out.npy").shape == (60, 100)
    assert f"--dimensions 100: the model was trained at {trained} dimensions; see --matryoshka" in "".join(log_lines)


@pytest.mark.slow
def test_sentences_in_columns(folders, source, tmp_path, monkeypatch):
    """As of one sentence a line, in the middle of a line too; each column after its own prompt."""
    rows = list(zip(TEXTS[0::3], TEXTS[1::3], TEXTS[2::3], strict=True))
    table, target = tmp_path / "table.txt", str(tmp_path / "out.npy")
    table.write_text("\n".join(map("\t".join, rows)))
    run(folders["simcse"], table, output_file=target, columns=3)
    np.testing.assert_allclose(np.load(target), expected_of(folders["simcse"]), atol=1e-5)
    with pytest.raises(UserError, match="holds vectors of another run, which differs in .*--columns"):
        run(folders["simcse"], source, output_file=target)

    append = VectorFile.append

    def ended(*arguments):
        append(*arguments)
        raise KeyboardInterrupt

    target = str(tmp_path / "with_prompts.npy")
    with monkeypatch.context() as patched:
        patched.setattr(VectorFile, "append", ended)
        with pytest.raises(KeyboardInterrupt):
            run(folders["prompts"], table, output_file=target, columns=3)
    run(folders["prompts"], table, output_file=target, columns=3)
    peer = SentenceTransformer(str(folders["prompts"]), device="cpu")
    queries, others = peer.encode_query(TEXTS), peer.encode_document(TEXTS)
    is_query = np.arange(len(TEXTS))[:, None] % 3 == 0
    np.testing.assert_allclose(np.load(target), np.where(is_query, queries, others), atol=1e-5)
    run(folders["prompts"], table, output_file=target, columns=3, prompt="none", overwrite=True)
    np.testing.assert_allclose(np.load(target), expected_of(folders["prompts"]), atol=1e-5)

    table.write_text("a\tb\tc\nd\te\n")
    with pytest.raises(UserError, match=r":2: expected 3 columns \(text⇥text⇥text\), got 2"):
        run(folders["simcse"], table, output_file=target, columns=3, overwrite=True)


def test_two_processes(folders, source, tmp_path):
    options = {"model_dir": folders["simcse"], "input_file": source, "output_file": tmp_path / "out.npy"}
    config = encode.EncodeConfig(**{name: str(value) for name, value in options.items()})
    run_processes(2, encode.run, config)
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected_of(folders["simcse"]), atol=1e-5)
    assert json.loads((tmp_path / "out.npy.json").read_text())["done"] == len(TEXTS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "expected --output_file, or --nearest with --corpus_file, got neither"),
        ({"nearest": 3}, "--nearest and --corpus_file need each other"),
        ({"output_file": "out.txt"}, "expected a name that ends in .npy"),
        ({"output_file": "-"}, "expected a name that ends in .npy"),
        ({"output_file": "o.npy", "columns": 2, "prompt": "query"}, "--columns and --prompt query do not go together"),
        ({"nearest": 3, "corpus_file": "c", "columns": 2}, "--columns and --nearest do not go together"),
    ],
)
def test_options_that_contradict_each_other(settings, message):
    with pytest.raises(UserError, match=message):
        run("folder", "in.txt", **settings)


def test_a_folder_without_embeddings(folders, source, tmp_path):
    with pytest.raises(UserError, match="expected an embedding model to encode with"):
        run(folders["classifier"], source, output_file=str(tmp_path / "out.npy"))
