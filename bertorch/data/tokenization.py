"""Examples → token store: the ids of all sentences end to end in flat arrays, with offsets."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from transformers import PreTrainedTokenizerBase

from bertorch.errors import UserError

# Examples handed to the tokenizer at once: enough for its threads, few enough that the lists it returns stay small.
CHUNK = 2048


@dataclass(frozen=True)
class TokenStore:
    """The tokens of N sentences, end to end.

    Attributes:
        input_ids: (tokens,) int32.
        token_type_ids: (tokens,) int8: 1 in the second text of a pair, if the model tells the texts apart.
        offsets: (N+1,) int64: sentence i is tokens `offsets[i] : offsets[i+1]`.
    """

    input_ids: np.ndarray
    token_type_ids: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """(N,) int64, tokens of each sentence."""
        return np.diff(self.offsets)


def tokenize(tokenizer: PreTrainedTokenizerBase, columns: Sequence[list[str]], max_length: int) -> TokenStore:
    """Tokenise texts or text pairs with the special tokens of the model.

    Args:
        tokenizer: the model's tokenizer.
        columns: one list of N texts, or two for pairs.
        max_length: tokens kept of an example, special tokens included; of a pair, the longer text is cut first.

    Raises:
        UserError: `max_length` leaves no room for a token of each text.
    """
    needed = tokenizer.num_special_tokens_to_add(pair=len(columns) == 2) + len(columns)
    if max_length < needed:
        raise UserError(f"--max_seq_length {max_length}: expected at least {needed}, a token of each text among them")
    ids: list[np.ndarray] = []
    types: list[np.ndarray] = []
    lengths: list[np.ndarray] = []
    for start in range(0, len(columns[0]), CHUNK):
        chunk = [column[start : start + CHUNK] for column in columns]
        encoded = tokenizer(
            *chunk,
            truncation="longest_first",
            max_length=max_length,
            return_attention_mask=False,
            return_token_type_ids=True,
        )
        lengths.append(np.fromiter(map(len, encoded["input_ids"]), dtype=np.int64, count=len(chunk[0])))
        ids.append(_flatten(encoded["input_ids"], np.int32))
        types.append(_flatten(encoded["token_type_ids"], np.int8))
    return TokenStore(
        input_ids=np.concatenate(ids),
        token_type_ids=np.concatenate(types),
        offsets=np.concatenate([[0], *lengths]).cumsum(),
    )


def _flatten(rows: list[list[int]], dtype: type[np.integer]) -> np.ndarray:
    return np.fromiter(chain.from_iterable(rows), dtype=dtype)
