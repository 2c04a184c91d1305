"""Every architecture in transformers' tables of classifiers: its results are transformers' own, or it is refused."""

import inspect
from itertools import pairwise

import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, AutoModelForTokenClassification
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
)

from bertorch.data.batch import PackedBatch
from bertorch.encoder.classifier import SequenceClassifier, TokenClassifier
from bertorch.encoder.encoder import Encoder
from bertorch.errors import UserError
from tests.architectures import PAD, padded_inputs, random_batch, tiny_config

KINDS = {
    "encoder": (Encoder, AutoModel),
    "classifier": (SequenceClassifier, AutoModelForSequenceClassification),
    "tagger": (TokenClassifier, AutoModelForTokenClassification),
}
NAMES = {
    "encoder": {**MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES, **MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES},
    "classifier": MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "tagger": MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
}
# No random model of a few weights can be built: of LayoutLMv2 without detectron2, of the others not that small.
NOT_BUILT = ("layoutlmv2", "cohere_compass_text", "zamba", "zamba2")
ALL = [(kind, name) for kind, names in NAMES.items() for name in sorted(names) if name not in NOT_BUILT]
# Those that were wrong, refused, or ended in a traceback once.
NAMED = [
    (kind, name)
    for kind in KINDS
    for name in (
        *("big_bird", "convbert", "esm", "flaubert", "fnet", "gpt2", "ibert", "longformer", "luke", "mra", "perceiver"),
        *("reformer", "roberta", "t5", "tapas", "xlm", "xlnet", "xmod", "yoso", "canine", "bros", "nystromformer"),
    )
    if name in NAMES[kind]
]
# What becomes of the encoders that are refused; each other one runs.
REFUSED = {
    "encoder": ("bros", "canine", "convbert", "fnet", "nystromformer", "perceiver", "reformer", "t5", "yoso"),
    "classifier": ("canine", "convbert", "fnet", "nystromformer", "perceiver", "reformer", "t5", "xlnet", "yoso"),
    "tagger": ("bros", "canine", "convbert", "fnet", "nystromformer", "yoso"),
}


def build(kind: str, architecture: str, **settings: object):
    torch.manual_seed(0)
    return KINDS[kind][1].from_config(tiny_config(architecture, num_labels=3, **settings)).eval()


def token_types_of(model) -> int:
    takes_them = "token_type_ids" in inspect.signature(model.base_model.forward).parameters
    return (getattr(model.config, "type_vocab_size", 0) or 0) if takes_them else 0


def batch_for(model, limit: int | None) -> PackedBatch:
    """Sentences with the special tokens <pad> and <mask> in them, one longer than the chunks that some models have."""
    lengths = [min(length, limit or length) for length in (4, 150, 2, 33, 17)]
    batch = random_batch(lengths, token_types=token_types_of(model))
    starts = batch.cu_seqlens.tolist()
    for token in {PAD, getattr(model.config, "mask_token_id", None) or PAD}:
        if token < 50:
            batch.input_ids[[starts[1] + 3 + token, starts[3] + 2 + token]] = token
    return batch


def alone(model, batch: PackedBatch) -> list[torch.Tensor]:
    """transformers' own results, sentence by sentence; those of its tokens in their order."""
    results = []
    for start, end in pairwise(batch.cu_seqlens.tolist()):
        inputs = {
            "input_ids": batch.input_ids[None, start:end],
            "attention_mask": torch.ones(1, end - start, dtype=torch.int64),
        }
        if token_types_of(model) > 1:
            inputs["token_type_ids"] = batch.token_type_ids[None, start:end]
        results.append(output_of(model, inputs).flatten(0, -2))
    return results


def output_of(model, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    output = model(**inputs)
    return output.logits if hasattr(output, "logits") else output.last_hidden_state


def ours_of(kind: str, model, batch: PackedBatch) -> torch.Tensor:
    return model.head_logits(model.encoder(batch)) if kind == "tagger" else model(batch)


def assert_near(got: torch.Tensor, expected: torch.Tensor, tolerance: float, name: str) -> None:
    assert got.shape == expected.shape, name
    assert (got - expected).abs().max() <= tolerance * expected.abs().max().clamp(min=1e-3), name


def check(kind: str, architecture: str) -> bool:
    """Whether the model runs, with the results of transformers; otherwise it is refused."""
    try:
        model = KINDS[kind][0](build(kind, architecture)).eval()
    except UserError as error:
        message = str(error)
    else:
        assert_same_as_transformers(kind, model, build(kind, architecture))
        return True
    assert message.startswith("expected an encoder")
    assert message.endswith("choose another --pretrained_model_name_or_path")
    return False


def assert_same_as_transformers(kind: str, model, reference) -> None:
    """Values, sentence by sentence, and gradients, of the padded batch."""
    encoder = model if kind == "encoder" else model.encoder
    batch = batch_for(reference, encoder.max_length)
    got = ours_of(kind, model, batch)
    with torch.no_grad():
        assert_near(got, torch.cat(alone(reference, batch)), 1e-4, "values")

    inputs = padded_inputs(batch, takes_token_types=token_types_of(reference) > 1)
    expected = output_of(reference, inputs)
    if kind != "classifier":
        expected = expected[inputs["attention_mask"].bool()]
    weights = torch.randn(got.shape, generator=torch.Generator().manual_seed(2))
    (got * weights).sum().backward()
    (expected * weights).sum().backward()
    gradients = {name: parameter.grad for name, parameter in reference.named_parameters()}
    for name, parameter in model.model.named_parameters():
        assert (parameter.grad is None) == (gradients[name] is None), name
        if parameter.grad is not None:
            assert_near(parameter.grad, gradients[name], 1e-3, name)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "architecture"), ALL)
def test_it_gives_the_results_of_transformers_or_is_refused(kind, architecture):
    check(kind, architecture)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "architecture"), NAMED)
def test_it_runs_or_is_refused_as_it_should(kind, architecture):
    assert check(kind, architecture) == (architecture not in REFUSED[kind])
