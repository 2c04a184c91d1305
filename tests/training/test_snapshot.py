import torch

from bertorch.training.snapshot import HostMemory


def test_copies_stay_as_they_were_and_share_no_memory():
    tied = torch.arange(6.0)
    tensors = {"a": tied, "b": tied, "transposed": torch.arange(6.0).view(2, 3).t(), "scalar": torch.tensor(3)}
    expected = {name: tensor.clone() for name, tensor in tensors.items()}
    copies = HostMemory().copies(tensors)
    for tensor in tensors.values():
        tensor.zero_()
    for name, tensor in expected.items():
        assert torch.equal(copies[name], tensor)
        assert copies[name].is_contiguous()
        assert copies[name].dtype == tensor.dtype
    assert len({copy.data_ptr() for copy in copies.values()}) == len(copies)


def test_a_tensor_under_two_names_is_copied_once_in_a_save():
    memory, weight = HostMemory(), torch.ones(3)
    memory.begin()
    for_use, in_checkpoint = memory.copies({"bert.a": weight}), memory.copies({"model.a": weight})
    assert for_use["bert.a"] is in_checkpoint["model.a"]


def test_other_values_for_the_time_of_a_save_are_another_copy():
    memory, weight = HostMemory(), torch.ones(3)
    averaged = memory.copies({"a": weight}, variant="averaged")
    weight.fill_(2)
    assert torch.equal(memory.copies({"a": weight})["a"], torch.full((3,), 2.0))
    assert torch.equal(averaged["a"], torch.ones(3))


def test_the_next_save_uses_the_memory_of_the_last_and_gives_back_the_rest():
    memory, weight, gone = HostMemory(), torch.ones(3), torch.ones(4)
    first = memory.copies({"a": weight})["a"]
    memory.copies({"gone": gone})
    memory.begin()
    weight.fill_(5)
    again = memory.copies({"a": weight})["a"]
    assert again is first
    assert torch.equal(again, torch.full((3,), 5.0))
    memory.begin()
    memory.copies({"a": weight})
    assert sum(buffer.numel() for buffer in memory._buffers.values()) == 3
