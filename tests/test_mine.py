"""Mining as a user starts it, against plain loops over all scores of sentence-transformers."""

import os
import re
import shutil
import signal
import time
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from sentence_transformers import CrossEncoder, SentenceTransformer

from bertorch import mine
from bertorch.data.readers import read_pairs
from bertorch.errors import UserError
from bertorch.inference import engine, load, mining
from bertorch.inference.hard_negatives import Selection
from bertorch.inference.vectors import VectorFile
from tests.conftest import PARAPHRASES, SENTENCES, TINY, fork, run_processes, run_script, wait_for

LINES = PARAPHRASES.read_text().splitlines()[:40]
PAIRS = [tuple(line.split("\t")) for line in LINES]
# Some queries have several positives, some pairs stand the other way round, some lines come twice.
LINKED = [*PAIRS, (PAIRS[0][0], PAIRS[5][1]), (PAIRS[0][0], PAIRS[6][1]), (PAIRS[3][1], PAIRS[3][0]), PAIRS[7]]
LINKED += [(PAIRS[8][1], PAIRS[9][0])]
CACHED_LOAD = cache(load.load)


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setattr(load, "load", CACHED_LOAD)
    monkeypatch.setattr(engine, "WINDOW", 16)
    monkeypatch.setattr(mining, "FOUND_AT_ONCE", 300)
    monkeypatch.setattr(mining, "PAIRS_AT_ONCE", 64)
    return write(tmp_path / "pairs.txt", LINKED)


def write(path, pairs):
    path.write_text("".join("\t".join(pair) + "\n" for pair in pairs))
    return path


def run(folder, source, output, **settings):
    settings = {"num_negatives": 2, "rank_to": 10} | settings
    config = mine.MineConfig(model_dir=str(folder), input_file=str(source), output_file=str(output), **settings)
    mine.run(config)
    return rows_of(output)


def rows_of(path):
    return [tuple(line.split("\t")) for line in path.read_text().splitlines()]


def known_of(query, pairs):
    return {query} | {b for a, b in pairs if a == query} | {a for a, b in pairs if b == query}


def ranked_of(folder, pairs, corpus):
    """Of each query all passages that may be negatives, best first, with cosines; and the cosines of all pairs."""
    model = SentenceTransformer(str(folder), device="cpu")
    texts = sorted({text for pair in pairs for text in pair} | set(corpus))
    settings = {"normalize_embeddings": True, "show_progress_bar": False}
    of_query = dict(zip(texts, model.encode_query(texts, **settings), strict=True))
    of_passage = dict(zip(texts, model.encode_document(texts, **settings), strict=True))
    ranked = {}
    for query in {a for a, _ in pairs}:
        allowed = [passage for passage in dict.fromkeys(corpus) if passage not in known_of(query, pairs)]
        ranked[query] = sorted(
            ((float(of_query[query] @ of_passage[each]), each) for each in allowed), key=lambda x: -x[0]
        )
    return ranked, [float(of_query[a] @ of_passage[b]) for a, b in pairs]


def suited_of(ranked, positive, first, last, margin):
    return [text for score, text in ranked[first - 1 : last] if score <= positive - margin * abs(positive)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "wanted", "has_corpus"),
    [
        ("batchneg", (1, 10, 0.05), False),
        ("batchneg", (3, 7, 0.2), False),
        ("batchneg", (2, 200, 0.5), True),
        ("prompts", (1, 10, 0.05), True),
    ],
)
def test_the_best_that_are_far_enough_below_the_positive(folders, source, model, wanted, has_corpus):
    tmp_path, (first, last, margin) = source.parent, wanted
    corpus, options = [b for _, b in LINKED], {}
    if has_corpus:
        corpus = [*SENTENCES.read_text().splitlines()[:50], *(a for a, _ in PAIRS), PAIRS[2][1], PAIRS[2][1]]
        options = {"corpus_file": str(tmp_path / "corpus.txt")}
        (tmp_path / "corpus.txt").write_text("\n".join(corpus))
    ranked, positives = ranked_of(folders[model], LINKED, corpus)
    expected = []
    for pair, positive in zip(LINKED, positives, strict=True):
        suited = suited_of(ranked[pair[0]], positive, first, last, margin)
        if len(suited) >= 2:
            expected.append((*pair, *suited[:2]))
    assert len(expected) > 0
    options |= {"rank_from": first, "rank_to": last, "relative_margin": margin}
    assert run(folders[model], source, tmp_path / "out.txt", **options) == expected
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".npy") == sorted(
        ["pairs.txt", "out.txt", *(["corpus.txt"] if has_corpus else [])]
    )


@pytest.mark.slow
def test_scores_of_a_cross_encoder_count(folders, source, tmp_path, log_lines):
    ranked, _ = ranked_of(folders["batchneg"], LINKED, [b for _, b in LINKED])
    peer = CrossEncoder(str(folders["ranking"]), device="cpu")
    expected, too_close = [], 0
    for query, positive in LINKED:
        candidates = [text for _, text in ranked[query][1:8]]
        scores = peer.predict([(query, text) for text in [positive, *candidates]], show_progress_bar=False).tolist()
        highest = scores[0] - 0.1 * abs(scores[0])
        rescored = sorted(zip(scores[1:], candidates, strict=True), key=lambda each: -each[0])
        suited = [text for score, text in rescored if score <= highest]
        too_close += len(candidates) - len(suited)
        expected += [(query, positive, *suited[:2])] if len(suited) >= 2 else []
    settings = {"rank_from": 2, "rank_to": 8, "relative_margin": 0.1, "reranker_dir": str(folders["ranking"])}
    found = run(folders["batchneg"], source, tmp_path / "out.txt", **settings)
    assert found == expected
    lines = "\n".join(log_lines)
    assert f"{len(expected)} of {len(LINKED)} lines, 2 negatives each; with too few candidates" in lines
    assert f"{too_close} score above the positive less 0.1 of it" in lines
    assert found != run(folders["batchneg"], source, tmp_path / "without.txt", **settings | {"reranker_dir": None})


@pytest.mark.slow
def test_a_sample_is_of_the_seed_and_the_line(folders, source, tmp_path, monkeypatch):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(b for _, b in LINKED))
    settings = {"sampling": "random", "corpus_file": str(corpus), "fill": "random"}
    found = run(folders["batchneg"], source, tmp_path / "a", **settings)
    ranked, positives = ranked_of(folders["batchneg"], LINKED, corpus.read_text().splitlines())
    for row, positive in zip(found, positives, strict=True):
        suited = suited_of(ranked[row[0]], positive, 1, 10, 0.05)
        assert set(row[2:]) <= set(suited) or len(suited) < 2
    assert run(folders["batchneg"], source, tmp_path / "b", **settings) == found
    other = run(folders["batchneg"], source, tmp_path / "c", **settings, seed=1)
    assert sum(map(np.not_equal, map(hash, other), map(hash, found))) > len(found) / 2
    monkeypatch.setattr(mining, "FOUND_AT_ONCE", 10**6)
    monkeypatch.setattr(engine, "WINDOW", 4096)
    assert run(folders["batchneg"], source, tmp_path / "d", **settings, batch_size=3) == found
    fewer = write(tmp_path / "fewer.txt", LINKED[:20])
    same = [
        row
        for row, pair in zip(found, LINKED[:20], strict=False)
        if known_of(pair[0], LINKED[:20]) == known_of(pair[0], LINKED)
    ]
    assert set(same) <= set(run(folders["batchneg"], fewer, tmp_path / "e", **settings))


def test_lines_with_too_few_negatives(folders, source, tmp_path, log_lines):
    settings = {"relative_margin": 0.3, "rank_to": 5, "num_negatives": 4}
    dropped = run(folders["batchneg"], source, tmp_path / "dropped", **settings)
    ranked, positives = ranked_of(folders["batchneg"], LINKED, [b for _, b in LINKED])
    suited = [suited_of(ranked[a], positive, 1, 5, 0.3) for (a, _), positive in zip(LINKED, positives, strict=True)]
    few = [len(each) < 4 for each in suited]
    assert 0 < sum(few) < len(LINKED)
    assert [row[:2] for row in dropped] == [pair for pair, is_few in zip(LINKED, few, strict=True) if not is_few]
    assert f"with too few candidates {sum(few)} dropped, 0 filled at random" in "\n".join(log_lines)

    filled = run(folders["batchneg"], source, tmp_path / "filled", **settings, fill="random")
    assert [row[:2] for row in filled] == LINKED
    assert [row for row, is_few in zip(filled, few, strict=True) if not is_few] == dropped
    assert f"with too few candidates 0 dropped, {sum(few)} filled at random" in "\n".join(log_lines)
    for row, texts in zip(filled, suited, strict=True):
        assert list(row[2 : 2 + len(texts[:4])]) == texts[:4]
        padding = row[2 + len(texts[:4]) :]
        assert len(set(row)) == 6
        assert not set(padding) & (known_of(row[0], LINKED) | {text for _, text in ranked[row[0]][:5]})
    assert run(folders["batchneg"], source, tmp_path / "again", **settings, fill="random") == filled
    assert run(folders["batchneg"], source, tmp_path / "seed", **settings, fill="random", seed=5) != filled
    # All passages are candidates: none is left to fill with.
    all_found = settings | {"rank_to": 100, "relative_margin": 0.6, "fill": "random"}
    assert len(run(folders["batchneg"], source, tmp_path / "all", **all_found)) < len(LINKED)


def test_no_line_has_enough(folders, source, tmp_path):
    with pytest.raises(UserError, match=r"pairs.txt: expected a line with 2 negatives, got none: of \d+ candidates"):
        run(folders["batchneg"], source, tmp_path / "out.txt", relative_margin=1.0, rank_to=2)
    assert not (tmp_path / "out.txt").exists()


def counting(patched, stop_after=None):
    """The shapes of the blocks written; after `stop_after` blocks, the process ends."""
    append, blocks = VectorFile.append, []

    def counted(self, vectors):
        if len(blocks) == stop_after:
            raise KeyboardInterrupt
        append(self, vectors)
        blocks.append(vectors.shape)

    patched.setattr(VectorFile, "append", counted)
    return blocks


@pytest.mark.slow
def test_it_goes_on_wherever_it_was_interrupted(folders, source, tmp_path, monkeypatch):
    settings = {"reranker_dir": str(folders["ranking"]), "sampling": "random", "rank_from": 2}
    with monkeypatch.context() as patched:
        all_blocks = counting(patched)
        whole = run(folders["batchneg"], source, tmp_path / "whole.txt", **settings)
    assert len({shape[1] for shape in all_blocks}) == 4  # vectors, found, scores, scores of positives
    ends = [index for index, (shape, after) in enumerate(pairwise(all_blocks), start=1) if shape[1] != after[1]]
    for stop in (1, ends[0], *(end + 1 for end in ends[1:-1])):  # within a part, or at its end
        output = tmp_path / f"{stop}.txt"
        with monkeypatch.context() as patched:
            counting(patched, stop)
            with pytest.raises(KeyboardInterrupt):
                run(folders["batchneg"], source, output, **settings)
        assert not output.exists()
        with monkeypatch.context() as patched:
            further = counting(patched)
            assert run(folders["batchneg"], source, output, **settings) == whole
        assert further == all_blocks[stop:]
        assert not (tmp_path / f"{stop}.txt.parts").exists()


def test_only_its_own_parts_are_removed(folders, source, tmp_path):
    parts = tmp_path / "out.txt.parts"
    parts.mkdir()
    (parts / "notes.txt").write_text("of a user")
    run(folders["batchneg"], source, tmp_path / "out.txt")
    assert [path.name for path in parts.iterdir()] == ["notes.txt"]


def test_a_block_of_queries_is_bounded_by_its_work(folders, source, tmp_path, monkeypatch):
    """No process waits longer than for one: of a large corpus it has fewer queries, and the result is the same."""
    sizes, search = [], mining.search

    def counted(queries, *rest, **settings):
        sizes.append(len(queries))
        return search(queries, *rest, **settings)

    monkeypatch.setattr(mining, "search", counted)
    whole = run(folders["batchneg"], source, tmp_path / "whole.txt")
    passages = len({b for _, b in LINKED})
    for name, cosines, most in (("five", 6 * passages - 1, 5), ("one", 1, 1)):
        assert max(sizes) > most
        sizes.clear()
        monkeypatch.setattr(mining, "COSINES_AT_ONCE", cosines)
        assert run(folders["batchneg"], source, tmp_path / name) == whole
        assert (max(sizes), sum(sizes)) == (most, len({a for a, _ in LINKED}))


def mine_slowly(config):
    """In small blocks, with time to be killed after each."""
    append = VectorFile.append

    def slow(self, vectors):
        append(self, vectors)
        time.sleep(0.1)

    engine.WINDOW, mining.FOUND_AT_ONCE, mining.PAIRS_AT_ONCE, VectorFile.append = 16, 300, 64, slow
    mine.run(config)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["passages", "queries", "found", "scores", "positives"])
def test_it_goes_on_after_it_was_killed(folders, source, tmp_path, part):
    settings = {"reranker_dir": str(folders["ranking"]), "sampling": "random", "num_negatives": 2, "rank_to": 10}
    files = {"model_dir": folders["batchneg"], "input_file": source, "output_file": tmp_path / "out.txt"}
    config = mine.MineConfig(**{name: str(path) for name, path in files.items()}, **settings)
    process = fork(mine_slowly, config)
    wait_for(tmp_path / "out.txt.parts" / f"{part}.npy.json")
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not (tmp_path / "out.txt").exists()
    whole = run(folders["batchneg"], source, tmp_path / "whole.txt", **settings)
    assert run(folders["batchneg"], source, tmp_path / "out.txt", **settings) == whole


def test_an_interruption_while_the_output_is_written(folders, source, tmp_path, monkeypatch):
    whole = run(folders["batchneg"], source, tmp_path / "whole.txt")
    interrupted_at_the_end(monkeypatch, folders["batchneg"], source, tmp_path / "out.txt")
    assert not (tmp_path / "out.txt").exists()
    blocks = counting(monkeypatch)
    assert run(folders["batchneg"], source, tmp_path / "out.txt") == whole
    assert blocks == []


def interrupted_at_the_end(monkeypatch, *arguments, **settings):
    """A run that has all parts."""

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Selection, "sampled", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(*arguments, **settings)


@pytest.mark.slow
def test_only_parts_that_depend_on_the_same_are_taken(folders, source, tmp_path, monkeypatch, log_lines):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(b for _, b in reversed(LINKED)))
    with monkeypatch.context() as patched:
        counting(patched, 4)
        with pytest.raises(KeyboardInterrupt):
            run(folders["simcse"], source, tmp_path / "out.txt")
    reranker = {"reranker_dir": str(folders["ranking"])}
    for settings, differences in (  # from the run before
        ({}, "passages.npy: of another run, which differs in .*content of --model_dir, config.json"),
        ({"max_seq_length": 8, "precision": "bf16"}, "queries.npy: .* differs in tokens of --model_dir, precision of"),
        ({"corpus_file": str(corpus)} | reranker, "passages.npy: .* differs in content of --corpus_file, tokens of"),
        (
            {"corpus_file": str(corpus), "rank_to": 7},
            "found.npy: of another run, which differs in size, --rank_to; made",
        ),
        (reranker | {"rank_from": 2}, "scores.npy: .* differs in size, content of --corpus_file, --rank_from; made"),
        (reranker | {"rank_from": 2, "relative_margin": 0.2, "seed": 3}, None),
    ):
        fresh = run(folders["batchneg"], source, tmp_path / "fresh.txt", overwrite=True, **settings)
        del log_lines[:]
        interrupted_at_the_end(monkeypatch, folders["batchneg"], source, tmp_path / "out.txt", **settings)
        logged = "\n".join(log_lines)
        assert re.search(differences, logged) if differences is not None else logged == ""
        with monkeypatch.context() as patched:
            patched.setattr(mining.Mining, "remove", lambda self: None)
            assert run(folders["batchneg"], source, tmp_path / "out.txt", **settings) == fresh
        (tmp_path / "out.txt").unlink()
    shutil.copytree(folders["batchneg"], tmp_path / "model")
    (tmp_path / "model" / "further.json").write_text("{}")
    for folder in (tmp_path / "model", folders["batchneg"]):  # a file more, and one less
        del log_lines[:]
        with monkeypatch.context() as patched:
            patched.setattr(mining.Mining, "remove", lambda self: None)
            run(folder, source, tmp_path / "out.txt", overwrite=True)
        assert "passages.npy: of another run, which differs in content of --model_dir, further.json" in log_lines[0]


@pytest.mark.slow
@pytest.mark.parametrize("reranked", [False, True])
def test_two_processes(folders, source, tmp_path, reranked):
    settings = {"reranker_dir": str(folders["ranking"])} if reranked else {"sampling": "random", "fill": "random"}
    alone = run(folders["batchneg"], source, tmp_path / "alone.txt", **settings)
    options = {"model_dir": folders["batchneg"], "input_file": source, "output_file": tmp_path / "out.txt"}
    options = {name: str(value) for name, value in options.items()}
    run_processes(2, mine.run, mine.MineConfig(**options, num_negatives=2, rank_to=10, **settings))
    assert rows_of(tmp_path / "out.txt") == alone


def test_an_output_is_not_replaced_unasked(folders, source, tmp_path):
    whole = run(folders["batchneg"], source, tmp_path / "out.txt")
    with pytest.raises(UserError, match=r"out.txt: expected no file of this name"):
        run(folders["batchneg"], source, tmp_path / "out.txt")
    (tmp_path / "link.txt").symlink_to("out.txt")
    assert run(folders["batchneg"], source, tmp_path / "link.txt", overwrite=True, num_negatives=1)[0] == whole[0][:3]
    assert (tmp_path / "link.txt").is_symlink()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\tb\na\tb\tc\n", r"pairs.txt:2: expected 2 columns \(query⇥positive\), got 3: .*; leave labels, scores and"),
        ("a\tb\na\n", r"pairs.txt:2: expected 2 columns \(query⇥positive\), got 1"),
        ("a\tb\n\tc\n", r"pairs.txt:2: expected no empty column"),
        ("a\tb\n", r"--rank_from 2: expected at most 1, the passages that there are"),
    ],
)
def test_wrong_input(tmp_path, text, message):
    (tmp_path / "pairs.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        run(tmp_path / "no model", tmp_path / "pairs.txt", tmp_path / "out.txt", rank_from=2)
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.txt"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank_from": 3, "rank_to": 2}, "--rank_from 3 --rank_to 2: expected the first rank not to be behind"),
        ({"rank_from": 3, "rank_to": 5, "num_negatives": 4}, "--num_negatives 4: expected at most the 3 ranks from 3"),
        ({"output_file": "-"}, "--output_file -: expected a file"),
    ],
)
def test_options_that_contradict_each_other(settings, message):
    with pytest.raises(UserError, match=message):
        mine.MineConfig(**{"model_dir": "m", "input_file": "i", "output_file": "o"} | settings)


def test_models_that_are_not_for_it(folders, source, tmp_path):
    for name in ("classifier", "ner", "ranking"):
        with pytest.raises(UserError, match="expected an embedding model to encode with, got one of run_"):
            run(folders[name], source, tmp_path / "out.txt")
    for name in ("pair classifier", "simcse", "score"):
        with pytest.raises(UserError, match="to rank with, got one of run_"):
            run(folders["batchneg"], source, tmp_path / "out.txt", reranker_dir=str(folders[name]))
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.txt"]


def test_the_output_has_the_form_of_groups(folders, source, tmp_path):
    found = run(folders["batchneg"], source, tmp_path / "out.txt", num_negatives=3)
    assert list(zip(*read_pairs(str(tmp_path / "out.txt")), strict=True)) == found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "options"),
    [("run_batchneg.py", ["--pooling_mode", "mean"]), ("run_classifier.py", ["--problem_type", "ranking"])],
)
def test_scripts_train_on_the_output(folders, source, tmp_path, script, options):
    run(folders["batchneg"], source, tmp_path / "out.txt")
    options += ["--train_data_file", tmp_path / "out.txt", "--saved_dir", tmp_path / "saved", "--max_steps", 2]
    done = run_script(
        script, "--pretrained_model_name_or_path", TINY, "--batch_size", 8, "--logging_steps", 1, *options
    )
    assert "global step: 2" in done.stderr
