"""Prompts: what stands before a text, by its role. The one place that knows which text gets which.

References:
    Wang et al., Text Embeddings by Weakly-Supervised Contrastive Pre-training, 2022 (E5: `query: `, `passage: `).
"""

from collections.abc import Collection
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from bertorch.config import PROMPT_ROLES
from bertorch.data.lines import HALF_PAIR
from bertorch.data.texts import Columns, Prefixed
from bertorch.errors import UserError


class Prompts(NamedTuple):
    """The prompts of a model; an empty one is none. A plain tuple, so that it can be part of a cache's key."""

    query: str | None = ""  # None: the model has one that we cannot apply
    passage: str | None = ""
    default: str | None = ""  # before a text without a role; None: the role must be said

    @classmethod
    def of_roles(cls, query: str, passage: str) -> "Prompts":
        """The prompts of a model of ours: with any, each text has a role, and in a pair the first is the query."""
        return cls(query, passage, None if query or passage else "")

    @property
    def by_role(self) -> bool:
        """Whether texts of pairs have roles."""
        return self.default is None

    def before(self, role: str | None) -> str:
        """What stands before a text of a role: `query`, `passage` or `none`; None is a text without one.

        Raises:
            UserError: there is no such role, it must be said, or its prompt cannot be applied.
        """
        if role is None and self.default is None:
            raise UserError(
                "expected to be told what the texts are, since the model was trained with prompts: query, passage, or "
                "none for no prompt; say so with --prompt, or with prompt= in Python"
            )
        prompts = dict(zip(PROMPT_ROLES, (self.query, self.passage, ""), strict=True)) | {None: self.default}
        if role not in prompts:
            raise UserError(f"expected a prompt of {', '.join(PROMPT_ROLES)}, got {role!r}")
        prompt = prompts[role]
        if prompt is None:
            raise UserError(
                f"expected a model whose pooling has the tokens of its prompts (include_prompt), got one without; the "
                f"prompt {role} cannot be applied; without it texts are encoded by bertorch.encode --prompt none, or "
                'with prompt="none" in Python'
            )
        return prompt

    def prepended(self, texts: Collection[str], role: str | None) -> Collection[str]:
        """Texts of a role, each after its prompt; see `before` for errors."""
        prompt = self.before(role)
        return Prefixed(prompt, texts) if prompt else texts

    def of_pairs(self, columns: Columns) -> Columns:
        """Columns of pairs, or of rows of more texts, after their prompts: first the queries, then passages.

        The folders of other programs do not say that their pairs are such; theirs all have the default prompt.
        """
        return [self.prepended(column, role) for column, role in zip(columns, self._roles(len(columns)), strict=True)]

    def before_columns(self, count: int) -> list[str]:
        """What stands before the texts of each of so many columns, as in `of_pairs`; see `before` for errors."""
        return [self.before(role) for role in self._roles(count)]

    def _roles(self, columns: int) -> list[str | None]:
        return ["query", *["passage"] * (columns - 1)] if self.by_role else [None] * columns


NO_PROMPTS = Prompts()


def prompts_for_training(
    query: str | None, passage: str | None, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Prompts:
    """The prompts that the options name; None and an empty one are none.

    Raises:
        UserError: a prompt is no text, or leaves no room for a token of a text among `max_length`.
    """
    for name, prompt in (("--query_prompt", query or ""), ("--passage_prompt", passage or "")):
        if HALF_PAIR.search(prompt):
            raise UserError(f"{name}: expected a text in UTF-8, got {prompt!r}")
        needed = len(tokenizer(prompt)["input_ids"]) + 1
        if prompt and needed > max_length:
            raise UserError(
                f"{name}: expected a prompt that leaves room for a text among the {max_length} tokens of "
                f"--max_seq_length, got one that needs at least {needed} with the special tokens; raise "
                "--max_seq_length, or shorten the prompt"
            )
    return Prompts.of_roles(query or "", passage or "")
