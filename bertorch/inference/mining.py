"""Candidates for hard negatives: embeddings, search and scores of a cross-encoder, each a part that can be resumed.

A part is a `bertorch.inference.vectors.VectorFile` in a folder of its own, with all that it depends on. A part that
depends on something else, such as another model, is made anew. Blocks of a part begin at the same rows whether or not
it was interrupted, so that a resumed one is the same bit for bit.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from loguru import logger

from bertorch import distributed
from bertorch.data.mining_texts import MiningTexts
from bertorch.data.teacher import record_path
from bertorch.files import read_record, writing
from bertorch.inference.model import Model
from bertorch.inference.vectors import VectorFile, differing, write_vectors
from bertorch.tasks.search import search, suited

FOUND_AT_ONCE = 2**22  # results of a block of queries, with those that are left out
COSINES_AT_ONCE = 2**31  # that a block of queries has with the corpus: some minutes of work at most
PAIRS_AT_ONCE = 2**14  # scored by a cross-encoder, about
_PARTS = ("passages", "queries", "found", "scores", "positives")


class Candidates(NamedTuple):
    """What negatives are chosen from, of N pairs with Q queries."""

    skipped: np.ndarray  # (Q, S) passages of the ranks before the first that is wanted; -1 where there are fewer
    passages: np.ndarray  # (Q, K) those of the ranks wanted; -1 where there are fewer
    scores: np.ndarray  # (Q, K); -inf there
    positives: np.ndarray  # (N,) scores of the positives

    def of_query(self, query: int) -> tuple[np.ndarray, np.ndarray]:
        """Its passages (up to K,) int64 and their scores in fp64."""
        is_there = self.passages[query] >= 0  # (K,)
        return self.passages[query][is_there].astype(np.int64), self.scores[query][is_there].astype(np.float64)

    def skipped_of_query(self, query: int) -> np.ndarray:
        """Its passages of the ranks before the first that is wanted, (up to S,) int64."""
        skipped = self.skipped[query]
        return skipped[skipped >= 0].astype(np.int64)


@dataclass(frozen=True)
class Mining:
    """The parts of one run of `bertorch.mine`; all processes must use it alike.

    `made_of` is what the embeddings depend on, as JSON, and `reranker_made_of` what scores of the cross-encoder do.
    """

    folder: Path
    texts: MiningTexts
    model: Model
    made_of: Mapping[str, Any]
    ranks: tuple[int, int]  # the first and the last that is wanted, from 1
    reranker: Model | None = None
    reranker_made_of: Mapping[str, Any] | None = None

    def candidates(self) -> Candidates | None:
        """Make what is missing; the result is on the first process alone.

        Raises:
            UserError: memory or the disk is full, or a file cannot be written.
        """
        texts, size = self.texts, self.model.size
        self._write("passages", (texts.passage_count, size), "float32", self.made_of, self._passage_vectors)
        self._write("queries", (len(texts.queries), size), "float32", self.made_of, self._query_vectors)
        searched = {**self.made_of, "--rank_to": self.ranks[1]}
        # Of each query first the passages, then their cosines: float64 holds both exactly.
        self._write("found", (len(texts.queries), 2 * self._depth), "float64", searched, self._found)
        if self.reranker is not None:
            of_pairs = {**self.made_of, **(self.reranker_made_of or {})}
            scored = {**searched, "--rank_from": self.ranks[0], **of_pairs}
            rescored, positives = (partial(method, self.reranker) for method in (self._rescored, self._positives))
            self._write("scores", (len(texts.queries), self._depth - self._skipped), "float32", scored, rescored)
            self._write("positives", (len(texts.pairs), 1), "float32", of_pairs, positives)
        return self._collected() if distributed.is_main() else None

    def remove(self) -> None:
        """Remove the parts, and their folder if it has nothing else.

        Raises:
            UserError: one cannot be removed.
        """
        with writing(self.folder):
            for name in _PARTS:
                for path in self.folder.glob(f"{name}.npy*"):  # the vectors, their record, a part that is not finished
                    path.unlink(missing_ok=True)
            if not any(self.folder.iterdir()):
                self.folder.rmdir()

    @property
    def _depth(self) -> int:
        return min(self.ranks[1], self.texts.corpus_size)

    @property
    def _skipped(self) -> int:
        return self.ranks[0] - 1

    def _write(
        self,
        name: str,
        shape: tuple[int, int],
        dtype: str,
        depends_on: Mapping[str, Any],
        blocks: Callable[[int], Iterable[np.ndarray]],
    ) -> None:
        path = str(self.folder / f"{name}.npy")
        made_of = {"rows": shape[0], "size": shape[1], "dtype": dtype, **depends_on}

        def prepare() -> VectorFile:
            recorded = read_record(
                record_path(path),
                lambda record: dict(record["made_of"]),
                expected="the record of a part of bertorch.mine",
                remedy=f"remove {self.folder}",
            )
            differences = [] if recorded is None else differing(recorded, made_of)
            if differences:
                logger.info("{}: of another run, which differs in {}; made anew", path, ", ".join(differences))
            return VectorFile(path, made_of, overwrite=bool(differences), record={})

        write_vectors(prepare, blocks)

    def _read(self, name: str) -> np.ndarray:
        mapped = np.load(self.folder / f"{name}.npy", mmap_mode="c")  # torch takes no array that cannot be written
        return mapped.view(np.ndarray)  # np.memmap itself is slow to index

    def _passage_vectors(self, done: int) -> Iterator[np.ndarray]:
        texts = self.texts
        passages = (texts.texts[number] for number in range(done, texts.passage_count))
        return (vectors for _, vectors in self.model.embeddings(passages, normalize=True, prompt="passage"))

    def _query_vectors(self, done: int) -> Iterator[np.ndarray]:
        texts = self.texts
        queries = (texts.texts[number] for number in texts.queries[done:].tolist())
        return (vectors for _, vectors in self.model.embeddings(queries, normalize=True, prompt="query"))

    def _found(self, done: int) -> Iterator[np.ndarray]:
        """(queries, 2·depth) float64; the search is the first process's, on its device."""
        for first, end in self._searches(done):
            found = np.zeros((end - first, 2 * self._depth))
            if distributed.is_main():
                queries = torch.from_numpy(self._read("queries")[first:end]).to(self.model.engine.device)
                corpus = torch.from_numpy(self._read("passages")[: self.texts.corpus_size])
                method = suited(queries, len(self.texts.queries) * len(corpus))  # of all blocks, wherever it began
                best = search(queries, corpus, self._depth, excluded=self._excluded(first, end), method=method)
                found[:, : self._depth], found[:, self._depth :] = best.indices.cpu(), best.scores.cpu()
            distributed.barrier()  # no process waits longer than for one block
            yield found

    def _excluded(self, first: int, end: int) -> torch.Tensor:
        """The pairs (X, 2) of queries, from `first`, and passages that are known to match."""
        bounds = self.texts.known_bounds[first : end + 1]
        queries = np.repeat(np.arange(end - first), np.diff(bounds))  # (X,)
        return torch.from_numpy(np.stack([queries, self.texts.known[bounds[0] : bounds[-1]]], axis=1))

    def _searches(self, done: int) -> Iterator[tuple[int, int]]:
        """Blocks of queries: many, but few of a large corpus or where a query has many passages that are left out."""
        counts = np.diff(self.texts.known_bounds)  # (Q,)
        at_once = COSINES_AT_ONCE // self.texts.corpus_size
        first = most = 0
        for query, count in enumerate(counts.tolist()):
            most = max(most, count)
            size = query + 1 - first
            if size > 1 and (size > at_once or size * (self._depth + most) > FOUND_AT_ONCE):
                if query > done:
                    yield max(first, done), query
                first, most = query, count
        if len(counts) > done:
            yield max(first, done), len(counts)

    def _rescored(self, reranker: Model, done: int) -> Iterator[np.ndarray]:
        """(queries, K) float32; -inf where there is no candidate."""
        width = self._depth - self._skipped
        at_once = max(1, PAIRS_AT_ONCE // width)
        for first in range(done, len(self.texts.queries), at_once):
            queries = self.texts.queries[first : first + at_once]
            passages = np.zeros((len(queries), width), np.int64)
            if distributed.is_main():
                passages[:] = self._read("found")[first : first + at_once, self._skipped : self._depth]
            passages = distributed.broadcast_tensors({"passages": torch.from_numpy(passages)})["passages"].cpu().numpy()
            rows, _ = np.nonzero(passages >= 0)  # (candidates,)
            scores = np.full(passages.shape, -np.inf, np.float32)
            pairs = np.stack([queries[rows], passages[passages >= 0]], axis=1)  # (candidates, 2)
            scores[passages >= 0] = self._scores(reranker, pairs)
            yield scores

    def _positives(self, reranker: Model, done: int) -> Iterator[np.ndarray]:
        for first in range(done, len(self.texts.pairs), PAIRS_AT_ONCE):
            yield self._scores(reranker, self.texts.pairs[first : first + PAIRS_AT_ONCE])[:, None]

    def _scores(self, reranker: Model, pairs: np.ndarray) -> np.ndarray:
        """(pairs,) float32, of pairs of numbers of texts (pairs, 2)."""
        texts = self.texts.texts
        inputs = ((texts[query], texts[passage]) for query, passage in pairs.tolist())
        windows = [rows[:, 0] for _, rows in reranker.engine.run(reranker.task.ranker(), inputs)]
        return np.concatenate([np.zeros(0, np.float32), *windows])

    def _collected(self) -> Candidates:
        found, first, depth = self._read("found"), self._skipped, self._depth
        if self.reranker is None:
            scores, positives = found[:, depth + first :], self._cosines()
        else:
            scores, positives = self._read("scores"), self._read("positives")[:, 0]
        return Candidates(found[:, :first], found[:, first:depth], scores, positives)

    def _cosines(self) -> np.ndarray:
        """(N,) fp32, of queries and their positives."""
        queries, passages = self._read("queries"), self._read("passages")
        cosines = np.zeros(len(self.texts.pairs), np.float32)
        for first in range(0, len(cosines), PAIRS_AT_ONCE):
            block = slice(first, first + PAIRS_AT_ONCE)
            theirs = passages[self.texts.pairs[block, 1]]  # (pairs, E)
            cosines[block] = (queries[self.texts.query_of_pairs[block]] * theirs).sum(axis=1)
        return cosines
