"""Examples whose long texts are several overlapping windows, all in the same batch."""

from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase
from typing_extensions import override

from bertorch.data.batch import PackedBatch
from bertorch.data.dataset import Dataset, paired
from bertorch.data.texts import Columns
from bertorch.data.tokens import end_to_end, tokenize_windows


@dataclass(frozen=True)
class WindowedDataset(Dataset):
    """Examples of S texts or pairs each with a label; `sentences` are their indices among M, each of which has windows.

    A batch has all windows of its examples, up to `windows` times as many tokens as without.
    """

    windows: np.ndarray  # (M+1,) int64: text or pair i has windows `windows[i] : windows[i+1]` of the store
    is_cut: np.ndarray  # (M,) bool, whether it has tokens that are in none of them

    @classmethod
    def of_windows(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        columns: Columns,
        labels: np.ndarray,
        *,
        max_length: int,
        windows: int,
    ) -> "WindowedDataset":
        """As `Dataset.of_sequences`, but with up to `windows` windows of at most `max_length` tokens each."""
        columns = paired(columns)
        store, offsets, is_cut = tokenize_windows(tokenizer, columns, max_length, windows, total=len(columns[0]))
        return cls(store, np.arange(len(is_cut)).reshape(len(labels), -1), labels, offsets, is_cut)

    @property
    @override
    def lengths(self) -> np.ndarray:
        tokens = np.diff(self.store.offsets[self.windows])  # (M,), of all windows, which follow each other
        return tokens[self.sentences].max(axis=1)  # (N,)

    @override
    def batch(self, indices: np.ndarray) -> PackedBatch:
        inputs = self.sentences[indices].ravel()  # (inputs,)
        counts = self.windows[inputs + 1] - self.windows[inputs]  # (inputs,)
        return PackedBatch.of(
            self.store,
            end_to_end(self.windows[inputs], counts),  # (N,)
            labels=torch.from_numpy(self.labels[indices]),
            window_counts=torch.from_numpy(counts),
        )
