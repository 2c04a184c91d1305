"""What the tasks with one logit share, whose predictions are scores: `--problem_type score` and `ranking`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from typing_extensions import override

from bertorch.data.lines import cell, shorten
from bertorch.encoder.cross_encoder import keep_raw_scores
from bertorch.errors import UserError
from bertorch.tasks.agreement import Agreement, same_order
from bertorch.tasks.base import Inference, LoadedFolder, Savable
from bertorch.tasks.scoring import Prediction
from bertorch.tasks.sequence_task import SequenceTask


@dataclass(frozen=True)
class Ranked:
    """A candidate in its place among those of a query."""

    index: int  # among the candidates given
    score: float


class OneScoreTask(SequenceTask):
    """A model with one logit, which is the score of a text or a pair; with pairs it ranks the candidates of a query.

    The folder opens in `sentence_transformers.CrossEncoder` with the same scores.
    """

    library_problem_type = "regression"  # a pipeline then gives the logit itself

    @classmethod
    @override
    def _saved_labels(cls, loaded: LoadedFolder) -> Sequence[str]:
        return ()

    @property
    @override
    def savables(self) -> list[Savable]:
        keep_raw_scores(self.model.config)
        if self._tokenizer is not None:
            self._tokenizer.model_max_length = self.max_seq_length  # where CrossEncoder cuts texts; we always say where
        return super().savables

    @override
    def scorer(self) -> Inference[Any]:
        return replace(super().scorer(), shape=(1,))

    @override
    def prediction(self, row: Sequence[float]) -> Prediction:
        return Prediction(score=row[0])

    @override
    def prediction_header(self) -> str:
        return "score"

    @override
    def prediction_line(self, source: Any, row: Any, *, tags: bool) -> str:
        return f"{row[0]:.6f}"

    @override
    def agreement(self) -> Agreement:
        def scores(rows: Sequence[Any]) -> list[float]:
            return [float(row[0]) for row in rows]

        return replace(super().agreement(), table=lambda rows, others: same_order(scores(rows), scores(others)))

    @override
    def ranker(self) -> Inference[Any]:
        if self.num_texts == 1:
            raise UserError(f"expected a model of pairs to rank with, got one of {self.scripts} for single texts")
        return self.scorer()

    @override
    def ranked_header(self) -> str:
        self.ranker()
        return "query\tcandidate\tscore\trank"

    @override
    def ranked_lines(self, sources: Sequence[Any], rows: Sequence[Any]) -> Iterator[str]:
        if sources and isinstance(sources[0], str):  # then all are, see `stream_inputs`
            raise UserError(f"expected pairs to rank (query⇥candidate), got the text {shorten(sources[0])}")
        indices_of: dict[str, list[int]] = {}
        for index, (query, _) in enumerate(sources):
            indices_of.setdefault(query, []).append(index)
        for query, indices in indices_of.items():
            for rank, each in enumerate(ranked([float(rows[index][0]) for index in indices]), start=1):
                candidate = sources[indices[each.index]][1]
                yield f"{cell(query)}\t{cell(candidate)}\t{each.score:.6f}\t{rank}"


def ranked(scores: Sequence[float]) -> list[Ranked]:
    """The candidates with these scores, best first; of equal ones the earlier first."""
    order = sorted(range(len(scores)), key=lambda index: -scores[index])  # stable
    return [Ranked(index, scores[index]) for index in order]
