"""Small random models of every architecture that the tests name."""

import inspect
from itertools import pairwise

import numpy as np
import torch
from transformers import (
    CONFIG_MAPPING,
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


# What `tiny_config` sets wherever a config has it.
_TINY = {
    32: "hidden_size d_model dim n_embd emb_dim embedding_size",
    2: "num_hidden_layers n_layers n_layer num_layers encoder_layers decoder_layers num_decoder_layers "
    "num_attention_heads n_heads n_head num_heads encoder_attention_heads decoder_attention_heads num_key_value_heads",
    48: "intermediate_size d_inner d_ff encoder_ffn_dim decoder_ffn_dim ffn_dim hidden_dim n_inner dff "
    "moe_intermediate_size shared_expert_intermediate_size",
    4: "num_experts num_local_experts n_routed_experts",
    16: "head_dim d_kv entity_emb_size",
    VOCABULARY: "vocab_size entity_vocab_size",
}
_TEXT = dict(_SMALL, vocab_size=VOCABULARY, num_key_value_heads=2, head_dim=16, pad_token_id=PAD)
_VISION = dict(_SMALL, num_hidden_layers=1, image_size=28, patch_size=14)
_AUDIO = {"d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 48, "output_dim": 32}
_HYBRID = ["linear_attention", "full_attention"]
_TINY_EXTRA = {
    "big_bird": {"block_size": 8, "num_random_blocks": 1},
    "bigbird_pegasus": {"block_size": 8, "num_random_blocks": 1},
    "canine": {"num_hash_buckets": 256, "num_hash_functions": 2},
    "esm": {"vocab_size": VOCABULARY, "mask_token_id": 4, "token_dropout": True, "position_embedding_type": "rotary"},
    "esmc": {"mask_token_id": 4},
    "eurobert": {"mask_token_id": 4},
    "funnel": {"block_sizes": [1, 1], "d_head": 16, "architectures": ["FunnelModel"]},
    "gemma3": {"text_config": _TEXT, "vision_config": _VISION},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "jamba": {"mamba_dt_rank": 4, "attn_layer_period": 2, "attn_layer_offset": 1},
    "layoutlmv3": {"coordinate_size": 6, "shape_size": 4, "input_size": 32},
    "lilt": {"hidden_size": 24},
    "longformer": {"attention_window": 8},
    "modernvbert": {"text_config": _TEXT, "vision_config": _VISION, "pad_token_id": PAD},
    "nemotron": {"num_key_value_heads": 2},
    "perceiver": {"d_latents": 32, "num_latents": 8, "num_self_attention_heads": 2, "num_cross_attention_heads": 2},
    "qwen3_5": {"text_config": dict(_TEXT, layer_types=_HYBRID), "vision_config": dict(_VISION, depth=1, num_heads=2)},
    "qwen3_asr": {"text_config": _TEXT, "audio_config": _AUDIO},
    "qwen3_next": {"layer_types": _HYBRID},
    "reformer": {"axial_pos_shape": [16, 16], "axial_pos_embds_dim": [16, 16], "attention_head_size": 16}
    | {"attn_layers": ["local", "lsh"], "feed_forward_size": 32, "num_buckets": 4},
    "t5gemma": {"encoder": _TEXT, "decoder": dict(_TEXT, cross_attention_hidden_size=32)},
    "t5gemma2": {"encoder": {"text_config": _TEXT, "vision_config": _VISION}, "decoder": _TEXT},
    "ultravbert": {"text_config": _TEXT, "vision_config": _VISION},
    "xmod": {"default_language": "en_XX"},
}
# Theirs follow from other sizes.
_OWN_SIZES = {"funnel": "num_hidden_layers", **dict.fromkeys(("axk1", "axk2", "deepseek_v2", "mistral4"), "head_dim")}
_HEAD_SIZES = ("hunyuan_v1_dense", "hunyuan_v1_moe", "ministral", "nemotron")


def tiny_config(architecture: str, **settings: object) -> PretrainedConfig:
    """A config of any architecture of transformers, of few weights."""
    kind = CONFIG_MAPPING[architecture]
    default = kind()
    sizes = {name: size for size, names in _TINY.items() for name in names.split()}
    fixed = [name for name in sizes if isinstance(getattr(kind, name, None), property)]
    values = {name: size for name, size in sizes.items() if isinstance(getattr(default, name, None), int)}
    for name in [*fixed, _OWN_SIZES.get(architecture)]:
        values.pop(name, None)
    if architecture in _HEAD_SIZES:
        values["head_dim"] = 16
    special = {"pad_token_id": PAD, "bos_token_id": 2, "eos_token_id": 3}
    return AutoConfig.for_model(architecture, **(values | special | _TINY_EXTRA.get(architecture, {}) | settings))


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
    types, cut = np.zeros(len(tokens), dtype=np.int8), np.zeros(size, dtype=np.bool_)
    return TokenStore(tokens, types, np.concatenate([[0], lengths]).cumsum(), cut)


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
