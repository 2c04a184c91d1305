"""Examples whose long texts are several overlapping windows, all in the same batch."""

from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase
from typing_extensions import override

from bertorch.data.batch import PackedBatch
from bertorch.data.dataset import Dataset, paired
from bertorch.data.texts import Columns
from bertorch.data.tokens import end_to_end, joined_hashes, tokenize_windows


@dataclass(frozen=True)
class WindowedDataset(Dataset):
    """Examples of S texts or pairs each with a label; `sentences` are their indices among M, each of which has windows.

    A batch has all windows of its examples, up to `windows` times as many tokens as without.
    """

    windows: np.ndarray  # (M+1,) int64: text or pair i has windows `windows[i] : windows[i+1]` of the store

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
        store, offsets = tokenize_windows(tokenizer, columns, max_length, windows, total=len(columns[0]))
        return cls(store, np.arange(len(offsets) - 1).reshape(len(labels), -1), labels, offsets)

    @property
    @override
    def lengths(self) -> np.ndarray:
        tokens = np.diff(self.store.offsets[self.windows])  # (M,), of all windows, which follow each other
        return tokens[self.sentences].max(axis=1)  # (N,)

    @override
    def cut(self, indices: np.ndarray) -> np.ndarray:
        last = self.windows[self.sentences[indices] + 1] - 1  # (examples, S)
        return self.store.cut[last].any(axis=1)

    @override
    def hashes(self, indices: np.ndarray) -> np.ndarray:
        windows, counts = self._windows_of(indices)
        return joined_hashes(self.store.hashes(windows), counts.reshape(len(indices), -1).sum(axis=1))

    @override
    def batch(self, indices: np.ndarray) -> PackedBatch:
        windows, counts = self._windows_of(indices)
        labels = torch.from_numpy(self.labels[indices])
        return PackedBatch.of(self.store, windows, labels=labels, window_counts=torch.from_numpy(counts))

    def _windows_of(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The windows (N,) of these examples, end to end, and how many each text or pair has, (examples·S,)."""
        inputs = self.sentences[indices].ravel()  # (examples·S,)
        counts = self.windows[inputs + 1] - self.windows[inputs]  # (examples·S,)
        return end_to_end(self.windows[inputs], counts), counts
