"""Digests of tensors: the same for the same tensors in any file, and different for any other."""

import pytest
import torch
from safetensors.torch import save_file

from bertorch.encoder.graph_sources import made_of, tensors_digest

TENSORS = {
    "matrix": torch.arange(6, dtype=torch.float32).view(2, 3),
    "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "scalar": torch.tensor(3, dtype=torch.int64),
    "empty": torch.zeros(0, 4),
    "flags": torch.tensor([True, False]),
}
OTHERS = {
    "a value": {"matrix": TENSORS["matrix"] + torch.tensor([0.0, 0.0, 1e-6])},
    "a shape": {"matrix": TENSORS["matrix"].view(3, 2)},
    "a type": {"half": TENSORS["half"].view(torch.float16)},
    "the shape of an empty one": {"empty": torch.zeros(4, 0)},
    "one more": {"more": torch.zeros(1)},
}


def test_the_file_does_not_matter(tmp_path):
    torch.save(TENSORS, tmp_path / "pytorch_model.bin")
    save_file(TENSORS, tmp_path / "model.safetensors")
    strided = {
        name: tensor.repeat(2, *[1] * (tensor.ndim - 1))[: len(tensor)]
        for name, tensor in TENSORS.items()
        if tensor.ndim
    }
    torch.save(
        dict(reversed((TENSORS | strided | {"matrix": TENSORS["matrix"].t().contiguous().t()}).items())),
        tmp_path / "other.bin",
    )
    assert (
        len({tensors_digest(tmp_path / name) for name in ("pytorch_model.bin", "model.safetensors", "other.bin")}) == 1
    )


@pytest.mark.parametrize("other", OTHERS)
def test_all_of_a_tensor_matters(tmp_path, other):
    torch.save(TENSORS, tmp_path / "one.bin")
    torch.save(TENSORS | OTHERS[other], tmp_path / "other.bin")
    assert tensors_digest(tmp_path / "one.bin") != tensors_digest(tmp_path / "other.bin")


def test_known_weights_are_not_read_again(tmp_path, monkeypatch):
    file = tmp_path / "pytorch_model.bin"
    torch.save(TENSORS, file)
    digests, states = made_of(tmp_path, {})
    with monkeypatch.context() as patch:
        patch.setattr("bertorch.encoder.graph_sources.tensors_digest", lambda file: pytest.fail("read again"))
        assert made_of(tmp_path, states) == (digests, states)
    torch.save(TENSORS | OTHERS["one more"], file)
    assert made_of(tmp_path, states)[0] != digests
