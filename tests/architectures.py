"""Small random models of every architecture that the tests name."""

import inspect
from itertools import pairwise

import numpy as np
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PretrainedConfig,
)

from bertorch.data.batch import PackedBatch
from bertorch.data.tagged_dataset import TaggedBatch
from bertorch.data.tokens import TokenStore

_SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 37}
_OTHERS = {"distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 37}}
_EXTRA = {
    "albert": {"embedding_size": 16},
    "electra": {"embedding_size": 16},
    "modernbert": {"local_attention": 8, "global_attn_every_n_layers": 2, "eos_token_id": 3, "bos_token_id": 2},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
}
VOCABULARY = 50
PAD = 1

PACKED = (
    "bert",
    "roberta",
    "xlm-roberta",
    "camembert",
    "electra",
    "ernie",
    "distilbert",
    "albert",
    "modernbert",
    "nomic_bert",
)
# MobileBERT says that it supports attention functions, but also mixes neighbouring tokens in its embeddings.
PADDED = ("deberta-v2", "mpnet", "roformer", "mobilebert")


def small_config(architecture: str, **settings: object) -> PretrainedConfig:
    shape = _OTHERS.get(architecture, _SMALL) | _EXTRA.get(architecture, {})
    return AutoConfig.for_model(architecture, vocab_size=VOCABULARY, pad_token_id=PAD, **shape, **settings)


def small_encoder(architecture: str, **settings: object):
    torch.manual_seed(0)
    return AutoModel.from_config(small_config(architecture, **settings))


def small_classifier(architecture: str, **settings: object):
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(small_config(architecture, num_labels=3, **settings))


def small_tagging_model(architecture: str, **settings: object):
    torch.manual_seed(0)
    return AutoModelForTokenClassification.from_config(small_config(architecture, num_labels=5, **settings))


def random_batch(lengths: list[int], *, token_types: int = 2) -> PackedBatch:
    """Sentences of these lengths; the second half of each has token type 1 where a model has two types."""
    total = sum(lengths)
    generator = torch.Generator().manual_seed(1)
    halves = [torch.arange(length) >= length // 2 for length in lengths]
    return PackedBatch(
        input_ids=torch.randint(5, VOCABULARY - 1, (total,), generator=generator),
        token_type_ids=torch.cat(halves).long() if token_types > 1 else torch.zeros(total, dtype=torch.int64),
        position_ids=torch.cat([torch.arange(length) for length in lengths]),
        cu_seqlens=torch.tensor([0, *lengths]).cumsum(0).int(),
        max_seqlen=max(lengths),
        labels=torch.randint(0, 3, (len(lengths),), generator=generator),
    )


def tagged_batch(batch: PackedBatch) -> TaggedBatch:
    """Every second token of a batch is the beginning of a word, whose tag is one of five."""
    bounds = batch.cu_seqlens.tolist()
    starts = [list(range(start, end, 2)) for start, end in pairwise(bounds)]
    words = [len(places) for places in starts]
    fields = vars(batch) | {"labels": torch.arange(sum(words)) * 7 % 5}
    return TaggedBatch(
        **fields,
        word_starts=torch.tensor([place for places in starts for place in places]),
        cu_words=torch.tensor([0, *words]).cumsum(0).int(),
        max_words=max(words),
    )


def random_store(size: int, seed: int = 0) -> TokenStore:
    """Sentences of 3 to 20 random tokens."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(3, 21, size)
    tokens = generator.integers(5, VOCABULARY - 1, lengths.sum()).astype(np.int32)
    return TokenStore(tokens, np.zeros(len(tokens), dtype=np.int8), np.concatenate([[0], lengths]).cumsum())


def padded_inputs(batch: PackedBatch, *, takes_token_types: bool) -> dict[str, torch.Tensor]:
    """The same batch as transformers' own collators would pad it, made sentence by sentence."""
    bounds = batch.cu_seqlens.tolist()
    size = (batch.size, batch.max_seqlen)
    inputs = {
        "input_ids": torch.full(size, PAD),
        "attention_mask": torch.zeros(size, dtype=torch.int64),
    }
    if takes_token_types:
        inputs["token_type_ids"] = torch.zeros(size, dtype=torch.int64)
    for row, (start, end) in enumerate(pairwise(bounds)):
        inputs["input_ids"][row, : end - start] = batch.input_ids[start:end]
        inputs["attention_mask"][row, : end - start] = 1
        if takes_token_types:
            inputs["token_type_ids"][row, : end - start] = batch.token_type_ids[start:end]
    return inputs


def batch_both_ways(model, lengths: list[int]) -> tuple[PackedBatch, dict[str, torch.Tensor]]:
    """A batch that suits a model of transformers, packed for us and padded for it."""
    takes_token_types = "token_type_ids" in inspect.signature(model.forward).parameters
    types = getattr(model.config, "type_vocab_size", 0) if takes_token_types else 0
    batch = random_batch(lengths, token_types=types)
    return batch, padded_inputs(batch, takes_token_types=types > 0)


def assert_same_gradients(ours: torch.nn.Module, reference: torch.nn.Module) -> None:
    gradients = {name: parameter.grad for name, parameter in reference.named_parameters()}
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-9, atol=1e-12, msg=name)
