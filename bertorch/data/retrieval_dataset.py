"""Tokenised queries and passages, each distinct text once."""

from dataclasses import dataclass
from itertools import chain

import numpy as np
from transformers import PreTrainedTokenizerBase

from bertorch.data.dataset import TextRows
from bertorch.data.prompts import Prompts
from bertorch.data.retrieval import RetrievalTexts
from bertorch.data.texts import columns_of


@dataclass(frozen=True)
class RetrievalDataset(TextRows):
    """N distinct texts, an example each, without labels, of which Q are asked for and C passages are made.

    `own`, `relevant`, `grades` and `is_kept` are those of `RetrievalTexts`.
    """

    queries: np.ndarray  # (Q,) int64, the text of each query
    passages: np.ndarray  # (C,) int64, the text of each passage, in the order of the corpus
    own: np.ndarray  # (Q,) int64
    relevant: np.ndarray  # (R, 2) int64
    grades: np.ndarray  # (R,) fp64
    is_kept: np.ndarray  # (queries of the file,) bool

    @classmethod
    def of(
        cls, tokenizer: PreTrainedTokenizerBase, texts: RetrievalTexts, *, prompts: Prompts, max_length: int
    ) -> "RetrievalDataset":
        """Tokenise the texts, each after the prompt of its role.

        Raises:
            UserError: a prompt cannot be applied, or the disk is full.
        """
        queries, passages = prompts.prepended(texts.queries, "query"), prompts.prepended(texts.passages, "passage")
        all_texts = columns_of([text] for text in chain(queries, passages))
        rows = cls.tokenized(tokenizer, all_texts, max_length=max_length)
        query_rows, passage_rows = np.split(rows.sentences[:, 0], [len(texts.queries)])
        return cls(
            rows.store,
            np.arange(len(rows.store))[:, None],
            query_rows,
            passage_rows,
            texts.own,
            texts.relevant,
            texts.grades,
            texts.is_kept,
        )
