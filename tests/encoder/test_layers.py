"""Where the parameters of an encoder stand, against names written down by hand."""

import re

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel

from bertorch.encoder.encoder import Encoder
from bertorch.encoder.layers import LayerDepths, keep_layers
from bertorch.errors import UserError
from tests.architectures import PACKED, PADDED, batch_both_ways, small_config, small_encoder, tiny_config
from tests.small_tasks import classification_data, classification_task, contrastive_task, siamese_task, tagging_task

# Of each architecture: the layer in a name, what is above the layers, and what is in none of both.
BERT = (r"^encoder\.layer\.(\d+)\.", r"^pooler\.", r"^embeddings\.")
NAMES = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "ernie", "mobilebert"), BERT),
    "electra": (BERT[0], r"^$", r"^embeddings(_project)?\."),
    "distilbert": (r"^transformer\.layer\.(\d+)\.", r"^$", r"^embeddings\."),
    "modernbert": (r"^layers\.(\d+)\.", r"^final_norm\.", r"^embeddings\."),
    "nomic_bert": (r"^layers\.(\d+)\.", r"^$", r"^embeddings\."),
    "deberta-v2": (BERT[0], r"^$", r"^(embeddings|encoder\.(rel_embeddings|LayerNorm))\."),
    "mpnet": (BERT[0], r"^pooler\.", r"^(embeddings|encoder\.relative_attention_bias)\."),
    "roformer": (BERT[0], r"^$", r"^(embeddings|encoder\.embed_positions)\."),
}
LAYERS = 2


@pytest.mark.parametrize("architecture", NAMES)
def test_the_depth_of_each_parameter(architecture):
    encoder = Encoder(small_encoder(architecture))
    depths = LayerDepths(encoder, "--option")
    assert depths.layers == LAYERS
    assert depths.of.keys() == set(encoder.parameters())
    in_layer, above, below = NAMES[architecture]
    seen = set()
    for name, parameter in encoder.model.named_parameters():
        if found := re.search(in_layer, name):
            expected = int(found.group(1)) + 1
        else:
            assert bool(re.search(above, name)) != bool(re.search(below, name)), name
            expected = LAYERS + 1 if re.search(above, name) else 0
        assert depths.of[parameter] == expected, name
        seen.add(expected)
    assert seen >= {0, *range(1, LAYERS + 1)}
    assert not any(module._forward_pre_hooks for module in encoder.modules())


def test_every_architecture_of_the_tests_is_here():
    assert set(NAMES) | {"albert"} == {*PACKED, *PADDED}


@pytest.mark.parametrize("architecture", ["xlm", "gpt2", "longformer"])
def test_models_of_another_build(architecture):
    """The parts of a layer in lists of their own (XLM), weights that no call shows (GPT-2, Longformer)."""
    torch.manual_seed(0)
    encoder = Encoder(AutoModel.from_config(tiny_config(architecture)))
    depths = LayerDepths(encoder, "--option")
    for name, parameter in encoder.model.named_parameters():
        found = re.search(r"(?:^|\.)(?:attentions|layer_norm1|ffns|layer_norm2|h|layer)\.(\d+)\.", name)
        above = name.startswith(("ln_f", "pooler"))
        assert depths.of[parameter] == (int(found.group(1)) + 1 if found else LAYERS + 1 if above else 0), name


@pytest.mark.parametrize(
    ("architecture", "why"),
    [("albert", "AlbertModel: its layers share their weights"), ("bart", "BartModel: such layers are not found")],
)
def test_other_encoders_are_refused(architecture, why):
    torch.manual_seed(0)
    encoder = Encoder(AutoModel.from_config(tiny_config(architecture)))
    with pytest.raises(
        UserError, match=f"--layer_decay 0.9: expected an encoder with layers of their own .* got {why}"
    ):
        LayerDepths(encoder, "--layer_decay 0.9")


def test_albert_with_groups_of_its_own_has_layers():
    depths = LayerDepths(Encoder(small_encoder("albert", num_hidden_groups=LAYERS)), "--option")
    assert sorted(set(depths.of.values())) == [0, 1, 2, 3]


def test_what_is_not_trained_anyway_stays_frozen():
    model = classification_task().model
    above = model.encoders[0].model.pooler.dense.bias.requires_grad_(False)
    model.freeze_layers(1)
    assert not above.requires_grad
    assert model.encoders[0].model.pooler.dense.weight.requires_grad


@pytest.mark.parametrize("count", [0, 1, 2])
def test_frozen_layers_get_no_gradient_and_the_others_the_same(count):
    """Also those of the layers above, which see the same hidden states."""
    gradients = []
    for freezes in (False, True):
        task = classification_task(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        model = task.model
        if freezes:
            model.freeze_layers(count)
        task.losses(classification_data(5).batch(torch.arange(5).numpy()))["loss"].backward()
        gradients.append({name: parameter.grad for name, parameter in model.model.named_parameters()})
    frozen = re.compile(rf"^bert\.(embeddings|encoder\.layer\.[0-{count - 1}])\." if count else r"^bert\.embeddings\.")
    for name, expected in gradients[0].items():
        if frozen.search(name):
            assert gradients[1][name] is None, name
        else:
            assert torch.equal(gradients[1][name], expected), name


@pytest.mark.parametrize(
    "make_task", [classification_task, siamese_task, contrastive_task, lambda: tagging_task(use_crf=True)]
)
def test_what_is_outside_of_the_encoder_is_never_frozen(make_task):
    model = make_task().model
    before = {name for name, each in model.named_parameters() if each.requires_grad}
    model.freeze_layers(LAYERS)
    (encoder,) = model.encoders
    inside = {each for name, each in encoder.model.named_parameters() if not name.startswith("pooler.")}
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (name in before and parameter not in inside), name


def test_more_layers_than_there_are():
    with pytest.raises(UserError, match=r"^--freeze_layers 3: expected at most the 2 layers of BertModel, got 3$"):
        classification_task().model.freeze_layers(3)


def test_something_must_be_left_to_train():
    task = contrastive_task(pooling_mode="mean")
    task.model.emb_reduce_linear = None
    with pytest.raises(UserError, match="--freeze_layers 2: expected something left to train"):
        task.model.freeze_layers(2)
    task = contrastive_task(pooling_mode="linear")
    task.model.emb_reduce_linear = None
    task.model.freeze_layers(2)  # the pooler is left


def test_the_factors():
    model = tagging_task(use_crf=True).model
    factors = model.rate_factors(0.5)
    for name, parameter in model.named_parameters():
        layer = re.search(r"encoder\.layer\.(\d+)\.", name)
        if "embeddings" in name:
            assert factors[parameter] == 0.125
        elif layer:
            assert factors[parameter] == {"0": 0.25, "1": 0.5}[layer.group(1)]
        else:
            assert isinstance(parameter, nn.Parameter)
            assert factors.get(parameter, 1.0) == 1.0


KEPT = (0, 2, 3)


def deep_encoder(architecture: str) -> Encoder:
    """Of four layers."""
    depth = "n_layers" if architecture == "distilbert" else "num_hidden_layers"
    config = small_config(architecture).to_dict()
    torch.manual_seed(0)
    own = {key: value for key, value in config.items() if key not in ("model_type", "layer_types")}
    return Encoder(AutoModel.from_config(AutoConfig.for_model(architecture, **(own | {depth: 4}))))


@pytest.mark.parametrize("architecture", NAMES)
def test_layers_that_are_kept(architecture, tmp_path):
    """Their weights are those they had, and transformers opens the folder with the same results."""
    encoder = deep_encoder(architecture)
    before = {name: each.clone() for name, each in encoder.model.state_dict().items()}
    keep_layers(encoder, KEPT)
    seen = set()
    for name, tensor in encoder.model.state_dict().items():
        old_name = name
        if found := re.search(NAMES[architecture][0], name):
            seen.add(number := int(found.group(1)))
            old_name = f"{name[: found.start(1)]}{KEPT[number]}{name[found.end(1) :]}"
        assert torch.equal(tensor, before[old_name]), name
    assert seen == {0, 1, 2}
    assert LayerDepths(encoder, "--option").layers == len(KEPT)
    encoder.model.save_pretrained(tmp_path)
    theirs = AutoModel.from_pretrained(tmp_path).eval()
    assert theirs.config.num_hidden_layers == len(KEPT)
    batch, inputs = batch_both_ways(theirs, [5, 9, 3])
    encoder.eval()
    with torch.no_grad():
        expected = theirs(**inputs).last_hidden_state[inputs["attention_mask"].bool()]  # (T, H)
        torch.testing.assert_close(encoder(batch), expected, rtol=1e-4, atol=1e-5)


def test_the_kinds_of_the_layers_are_kept_with_them():
    encoder = deep_encoder("modernbert")
    kinds = list(encoder.model.config.layer_types)
    kept = (0, 2)
    assert len(set(kinds)) == 2
    keep_layers(encoder, kept)
    assert encoder.model.config.layer_types == [kinds[layer] for layer in kept] != kinds[:2]


def test_a_layer_with_more_weights_than_the_first_has_does_not_become_the_first():
    """That of ModernBERT has no norm before attention, so the norm of another one would get lost in the save."""
    encoder = deep_encoder("modernbert")
    with pytest.raises(UserError, match="--layers_from 1,2: expected an encoder with layers of their own"):
        keep_layers(encoder, (1, 2))


@pytest.mark.parametrize(
    ("architecture", "why"),
    [
        ("albert", "AlbertModel: its layers share their weights"),
        ("bart", "BartModel: such layers are not found"),
        ("xlm", "XLMModel: without the others they do not give what its config then describes"),
    ],
)
def test_encoders_whose_layers_cannot_be_kept(architecture, why):
    torch.manual_seed(0)
    encoder = Encoder(AutoModel.from_config(tiny_config(architecture)))
    with pytest.raises(UserError, match=f"--layers_from 1: expected an encoder with layers of their own .* got {why}"):
        keep_layers(encoder, (1,))


def test_no_such_layer():
    message = "--layers_from 0,2: expected numbers from 0 to 1, the layers of BertModel, got 2$"
    with pytest.raises(UserError, match=message):
        classification_task().model.keep_layers((0, 2))
