import numpy as np
import pytest
import torch

from bertorch.data.dataset import Dataset
from bertorch.encoder.sentence_encoder import SentenceEncoder
from bertorch.errors import UserError
from tests.architectures import batch_both_ways, random_batch, random_store, small_encoder
from tests.conftest import TINY

LENGTHS = [4, 17, 2, 9]


def padded_embeddings(model, inputs, pooling_mode: str) -> torch.Tensor:
    """Pooling as it is done with a mask, on transformers' own padded output."""
    output = model(**inputs)
    if pooling_mode == "linear":
        return output.pooler_output
    if pooling_mode == "cls":
        return output.last_hidden_state[:, 0]
    mask = inputs["attention_mask"][..., None]
    return (output.last_hidden_state * mask).sum(1) / mask.sum(1)


@pytest.mark.parametrize("output_emb_size", [None, 5])
@pytest.mark.parametrize("architecture", ["bert", "xlm-roberta", "albert", "distilbert", "deberta-v2"])
@pytest.mark.parametrize("pooling_mode", ["linear", "cls", "mean"])
def test_embeddings_are_those_of_the_padded_model(architecture, pooling_mode, output_emb_size):
    if pooling_mode == "linear" and architecture in ("distilbert", "deberta-v2"):
        with pytest.raises(UserError, match="--pooling_mode linear: expected an encoder with a pooler.*choose cls or"):
            SentenceEncoder(small_encoder(architecture), pooling_mode, output_emb_size)
        return
    embedder = SentenceEncoder(small_encoder(architecture), pooling_mode, output_emb_size).double().eval()
    reference = small_encoder(architecture).double().eval()
    batch, inputs = batch_both_ways(reference, LENGTHS)
    expected = padded_embeddings(reference, inputs, pooling_mode)
    if output_emb_size is not None:
        layer = embedder.emb_reduce_linear
        expected = expected @ layer.weight.T + layer.bias
    embeddings = embedder(batch)
    assert embeddings.shape == (4, output_emb_size or 32)
    torch.testing.assert_close(embeddings, expected, rtol=0, atol=1e-12)


def test_the_names_of_the_weights_are_those_of_the_earlier_bertorch():
    names = SentenceEncoder(small_encoder("bert"), "mean", 5).weights.state_dict().keys()
    assert {name.split(".")[0] for name in names} == {"bert", "emb_reduce_linear"}
    assert "bert.pooler.dense.weight" in names  # also where it is not used, for the next user of the weights
    roberta = SentenceEncoder(small_encoder("roberta"), "mean")
    assert {name.split(".")[0] for name in roberta.weights.state_dict()} == {"roberta"}
    assert roberta.encoder_prefix == "roberta"


@pytest.mark.parametrize("architecture", ["bert", "distilbert", "modernbert", "nomic_bert"])
def test_dropout_is_set_everywhere_in_the_encoder(architecture, tmp_path):
    small_encoder(architecture).save_pretrained(tmp_path)
    model = SentenceEncoder.from_pretrained(str(tmp_path), "mean", dropout=0.3).encoder.model
    rates = {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)}
    for module in model.modules():  # the rates of attention are plain numbers
        rates |= {value for name, value in vars(module).items() if "dropout" in name and isinstance(value, float)}
    assert rates == {0.3}


def test_without_the_option_the_dropout_is_the_models_own():
    model = SentenceEncoder.from_pretrained(str(TINY), "mean").encoder.model
    assert model.config.hidden_dropout_prob == model.config.attention_probs_dropout_prob == 0.1


def test_a_model_without_dropout_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("bertorch.encoder.pretrained.ENCODER_DROPOUTS", ("no_such_dropout",))
    with pytest.raises(UserError, match="--dropout 0.3: expected a model with one of no_such_dropout"):
        SentenceEncoder.from_pretrained(str(TINY), "mean", dropout=0.3)


def test_no_sentence_gives_no_embedding_but_takes_a_gradient():
    embedder = SentenceEncoder(small_encoder("bert"), "linear", 5).double()
    sentences = np.zeros((0, 2), dtype=np.int64)
    empty = Dataset(random_store(1), sentences, sentences).batch(np.arange(0))
    embeddings = embedder(empty)
    assert (embeddings.shape, embeddings.dtype, embeddings.requires_grad) == ((0, 5), torch.float64, True)


def test_embeddings_are_fp32_under_autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for pooling_mode in ("linear", "cls", "mean"):
            assert SentenceEncoder(small_encoder("bert"), pooling_mode, 5)(random_batch(LENGTHS)).dtype == torch.float32
