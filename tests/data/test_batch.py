import numpy as np
import pytest
import torch

from bertorch.data.batch import PackedBatch
from tests.small_tasks import classification_data


def test_a_batch_is_split_without_asking_the_device_for_its_offsets():
    """Tensors on the meta device have no values: reading one raises, as waiting for a GPU would go unnoticed."""
    batch = classification_data(7).batch(np.arange(7))
    expected = [(chunk.size, len(chunk.input_ids), chunk.max_seqlen) for chunk in batch.split(3)]
    on_meta = [
        (chunk.size, len(chunk.input_ids), chunk.max_seqlen) for chunk in batch.to(torch.device("meta")).split(3)
    ]
    assert on_meta == expected
    assert [size for size, *_ in expected] == [3, 3, 1]


@pytest.mark.parametrize(("device", "expected"), [("cpu", False), ("meta", True)])
def test_only_copies_to_the_host_are_waited_for(device, expected, monkeypatch):
    """A copy from a GPU that is not waited for would be read before it has come."""
    waits = []

    def copied(tensor, _, *, non_blocking):
        waits.append(non_blocking)
        return tensor

    batch = classification_data(2).batch(np.arange(2))
    monkeypatch.setattr(torch.Tensor, "to", copied)
    batch.to(torch.device(device))
    assert set(waits) == {expected}


def test_the_offsets_on_the_host_are_those_on_the_device():
    batch: PackedBatch = classification_data(7).batch(np.arange(7)).filled(32)
    assert list(batch.offsets) == batch.cu_seqlens.tolist()
