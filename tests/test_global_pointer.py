"""EfficientGlobalPointer against plain loops over cells, in fp64: values, gradients, memory, and what is decoded."""

import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import bertorch.span_sums
from bertorch.global_pointer import GlobalPointer
from bertorch.span_cells import CellLayout, Cells, WordScores
from bertorch.span_sums import log_sums

HEAD_SIZE, TYPES = 6, 4
LENGTHS = [4, 1, 9, 2, 13, 5]
SPANS = [  # sentence, first word, end, type
    [4, 12, 13, 3],  # a last word
    [0, 0, 2, 1],  # the same cell twice
    [0, 0, 2, 3],
    [2, 1, 8, 0],  # nested
    [2, 2, 4, 0],
    [2, 3, 4, 2],
    [1, 0, 1, 2],  # the only cell of its sentence
    [4, 0, 13, 1],  # a whole sentence
]
LAYOUTS = {  # the layout, the elements of a temporary tensor, the padding for which a block is worth it
    "one group": ("grouped", 2**22, 2**16),
    "groups": ("grouped", 1, 0),
    "static": ("static", 3600, None),  # three types at a time
    "static, in parts": ("static", 400, None),  # two sentences
}


@pytest.fixture(params=LAYOUTS)
def layout(request, monkeypatch):
    """Each way to lay a batch out, on the CPU."""
    use_layout(monkeypatch, *LAYOUTS[request.param])
    return request.param


def use_layout(monkeypatch, kind: str, at_once: int, padding: int | None = None) -> None:
    monkeypatch.setattr("bertorch.span_cells.CELLS_AT_ONCE", at_once)
    if kind == "grouped":
        monkeypatch.setattr("bertorch.span_cells.PADDING_OF_BLOCK", padding)
    else:
        monkeypatch.setattr(CellLayout, "of", CellLayout.static)


def offsets(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def where(lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor, int]:
    """`cu_words`, `word_bounds` and `max_words` of a batch without filler."""
    return offsets(lengths), offsets(lengths), max(lengths) + 1


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_outputs(words: int, *, types=TYPES, head_size=HEAD_SIZE, scale=1.0, seed=0) -> torch.Tensor:
    """(K, 2d + 2C) such that q · k / √d, a/2 and b/2 are of about this scale."""
    rows = torch.randn(words, 2 * head_size + 2 * types, dtype=torch.float64, generator=generator(seed))
    rows[:, : 2 * head_size] *= math.sqrt(scale)
    rows[:, 2 * head_size :] *= scale
    return rows


def random_spans(lengths: list[int], types: int, each: float, seed=0) -> torch.Tensor:
    """About `each` different entities for a sentence, in any order; (P, 4)."""
    numbers = generator(seed)
    found = set()
    for sentence, length in enumerate(lengths):
        for _ in range(int(torch.poisson(torch.tensor(float(each)), generator=numbers))):
            first, end = sorted(torch.randint(length, (2,), generator=numbers).tolist())
            found.add((sentence, first, end + 1, int(torch.randint(types, (1,), generator=numbers))))
    rows = torch.tensor(sorted(found), dtype=torch.int64).reshape(-1, 4)
    return rows[torch.randperm(len(rows), generator=numbers)]


def model(types=TYPES, head_size=HEAD_SIZE) -> GlobalPointer:
    return GlobalPointer(5, types, head_size).double()


def turned(row: torch.Tensor, position: int) -> torch.Tensor:
    """RoPE by the textbook: pair m of the row is turned by position · 10000^(-2m/d)."""
    parts = []
    for index in range(0, len(row), 2):
        angle = position * 10000.0 ** (-index / len(row))
        matrix = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
        parts.append(torch.tensor(matrix, dtype=row.dtype) @ row[index : index + 2])
    return torch.cat(parts)


def all_scores(outputs: torch.Tensor, lengths: list[int], types=TYPES, head_size=HEAD_SIZE) -> list[torch.Tensor]:
    """Of each sentence (L, L, C), also where i > j."""
    every = []
    for rows in outputs.split(lengths):
        q, k, a, b = rows.split([head_size, head_size, types, types], dim=1)
        q, k = (torch.stack([turned(row, position) for position, row in enumerate(part)]) for part in (q, k))
        every.append((q @ k.T / math.sqrt(head_size))[:, :, None] + a[:, None] + b[None])
    return every


def dense_loss(outputs, spans, lengths, types=TYPES, head_size=HEAD_SIZE) -> torch.Tensor:
    """By the formula: for each sentence and type, over a list of its entities and a list of all other cells."""
    gold = {tuple(span) for span in spans.tolist()}
    losses = []
    for sentence, scores in enumerate(all_scores(outputs, lengths, types, head_size)):
        for kind in range(types):
            others, entities = [scores.new_zeros(())], [scores.new_zeros(())]
            for i in range(len(scores)):
                for j in range(i, len(scores)):
                    if (sentence, i, j + 1, kind) in gold:
                        entities.append(-scores[i, j, kind])
                    else:
                        others.append(scores[i, j, kind])
            losses.append(torch.stack(others).logsumexp(0) + torch.stack(entities).logsumexp(0))
    return torch.stack(losses).sum() / types


def with_gradient(function, outputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    outputs = outputs.detach().clone().requires_grad_()
    value = function(outputs)
    (gradient,) = torch.autograd.grad(value, outputs)
    return value.detach(), gradient


def assert_is_dense(outputs, spans, lengths, *, types=TYPES, head_size=HEAD_SIZE, dtype=torch.float64, **tolerance):
    """Loss and gradient, computed in a dtype on these numbers, are those of the formula in fp64."""
    outputs = outputs.to(dtype)
    pointer = model(types, head_size)
    ours = with_gradient(lambda rows: pointer.loss(rows, spans, *where(lengths)), outputs)
    theirs = with_gradient(lambda rows: dense_loss(rows, spans, lengths, types, head_size), outputs.double())
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(one.double(), other, **tolerance)


@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_loss_and_gradient_are_those_of_the_formula(layout, scale):
    outputs = random_outputs(sum(LENGTHS), scale=scale)
    assert_is_dense(outputs, torch.tensor(SPANS), LENGTHS, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("each", [0, 2, 30])
@pytest.mark.parametrize("seed", range(3))
def test_random_batches(layout, seed, each):
    """Without entities, with some, and with so many that few cells are left."""
    numbers = generator(seed)
    types, head_size = int(torch.randint(1, 9, (1,), generator=numbers)), 2 * (seed + 1)
    lengths = torch.randint(1, 15, (5,), generator=numbers).tolist()
    outputs = random_outputs(sum(lengths), types=types, head_size=head_size, scale=3.0, seed=seed)
    spans = random_spans(lengths, types, each, seed)
    assert_is_dense(outputs, spans, lengths, types=types, head_size=head_size, rtol=1e-11, atol=1e-12)


def test_all_cells_are_entities(layout):
    """Of every type in one sentence, of one each in another: nothing is left, or only what is added back."""
    spans = [[0, i, j, kind] for i in range(3) for j in range(i + 1, 4) for kind in range(TYPES)]
    spans += [[1, i, j, (i + j) % TYPES] for i in range(3) for j in range(i + 1, 4)]
    assert_is_dense(random_outputs(8), torch.tensor(spans), [3, 3, 2], rtol=1e-11, atol=1e-12)


def test_gradients_are_finite_differences(layout):
    lengths = [3, 1, 4]
    spans = torch.tensor([[0, 0, 2, 1], [0, 0, 2, 0], [2, 1, 4, 1]])
    outputs = random_outputs(8, types=2, head_size=4, scale=2.0).requires_grad_()
    pointer = model(2, 4)
    assert torch.autograd.gradcheck(lambda rows: pointer.loss(rows, spans, *where(lengths)), (outputs,))


@pytest.fixture
def dense_pairs(monkeypatch):
    """Counts the pairs of sentence and type that are summed cell by cell."""
    counted = []
    function = bertorch.span_sums._dense_log_sums

    def counting(scores, starts, ends):
        counted.append(starts.shape[0] * starts.shape[2])
        return function(scores, starts, ends)

    monkeypatch.setattr("bertorch.span_sums._dense_log_sums", counting)
    return counted


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-4)])
@pytest.mark.parametrize("seed", range(4))
def test_scores_of_a_hundred(layout, dense_pairs, seed, dtype, tolerance):
    """Each of q · k, a and b is of that size, so that the best row and the best column rarely meet in a good cell."""
    outputs = random_outputs(sum(LENGTHS), scale=100.0, seed=seed)
    assert all_scores(outputs, LENGTHS)[2].abs().max() > 100
    assert_is_dense(outputs, torch.tensor(SPANS), LENGTHS, dtype=dtype, rtol=tolerance, atol=tolerance)
    if "static" not in layout and dtype == torch.float32:
        assert 0 < sum(dense_pairs) < len(LENGTHS) * TYPES  # some, but not all


def conflict(strength: float) -> torch.Tensor:
    """(3, 2d + 2C) of d = 2, C = 2: for the first type row 0 and column 2 are by far the best, but not their cell.

    The others of that row and column score `strength`, which is also what they are below the best of the factors.
    """
    outputs = torch.zeros(3, 8, dtype=torch.float64)
    # At a distance of two words the product is turned by two radians, whose cosine is negative.
    outputs[0, 0] = outputs[2, 2] = math.sqrt(4 * strength * math.sqrt(2) / -math.cos(2))
    outputs[0, 4] = outputs[2, 6] = strength
    return outputs


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("strength", [5.0, 100.0, 1000.0])
def test_a_conflict_of_row_and_column(layout, dense_pairs, strength, dtype):
    outputs, spans = conflict(strength), torch.tensor([[0, 1, 2, 0]])
    assert all_scores(outputs, [3], 2, 2)[0][0, 2, 0].item() == pytest.approx(-2 * strength)
    assert_is_dense(outputs, spans, [3], types=2, head_size=2, dtype=dtype, rtol=1e-5, atol=1e-5)
    if "static" not in layout:
        assert sum(dense_pairs) == (strength > (50 if dtype == torch.float32 else 600))


def test_sums_are_exact_on_either_side_of_the_threshold(monkeypatch, dense_pairs):
    """Conflicts of growing strength in fp32, before the formula takes over and after."""
    use_layout(monkeypatch, "grouped", 2**22, 2**16)
    taken_over = []
    for strength in range(1, 100):
        dense_pairs.clear()
        spans = torch.zeros(0, 4, dtype=torch.int64)
        assert_is_dense(conflict(strength), spans, [3], types=2, head_size=2, dtype=torch.float32, rtol=1e-5, atol=1e-5)
        taken_over.append(bool(dense_pairs))
    assert taken_over == sorted(taken_over)
    assert set(taken_over) == {False, True}


def test_fp32_agrees_with_fp64_at_realistic_size(layout):
    lengths = [40, 3, 25, 60]
    outputs = random_outputs(sum(lengths), types=12, head_size=16, scale=3.0)
    outputs[:, 32:] -= 4
    spans = random_spans(lengths, 12, each=6)
    pointer = model(12, 16)

    def loss(rows):
        return pointer.loss(rows, spans, *where(lengths))

    exact, rounded = with_gradient(loss, outputs.float().double()), with_gradient(loss, outputs.float())
    for one, other in zip(exact, rounded, strict=True):
        assert other.dtype == torch.float32
        torch.testing.assert_close(one, other.double(), rtol=2e-5, atol=2e-6)


def test_log_sums_of_sentences_without_cells(layout):
    """-inf and no gradient, in the same block with a sentence that has cells."""
    rows = random_outputs(5).requires_grad_()
    everything = [[0, i, j] for i in range(2) for j in range(i, 2)]
    excluded = Cells(*torch.tensor(everything).T)
    sums = log_sums(rows, TYPES, excluded, CellLayout.of(offsets([2, 3]), 5, 3))
    assert (sums[0] == -torch.inf).all()
    assert sums[1].isfinite().all()
    sums[1].sum().backward()
    assert (rows.grad[:2] == 0).all()
    assert (rows.grad[2:] != 0).any(dim=1).all()

    rows.grad = None
    torch.logaddexp(
        log_sums(rows, TYPES, excluded, CellLayout.of(offsets([2, 3]), 5, 3)), rows.new_zeros(())
    ).sum().backward()
    assert (rows.grad[:2] == 0).all()
    assert rows.grad.isfinite().all()


def test_filler_counts_nothing(layout):
    """Neither words of filler, whatever they are, nor rows of spans; and spans may come in any order."""
    outputs, spans = random_outputs(sum(LENGTHS)), torch.tensor(SPANS)
    filled_spans = torch.cat([spans.flip(0), torch.tensor([[len(LENGTHS), 0, 0, 0]] * 3)])
    cu_words, longest = offsets(LENGTHS), 16
    filled = torch.cat([outputs, 1000 * random_outputs(7, seed=9)])
    bounds = torch.cat([cu_words, torch.tensor([len(filled)], dtype=torch.int32)])
    pointer = model()
    value, gradient = with_gradient(lambda rows: pointer.loss(rows, spans, *where(LENGTHS)), outputs)
    filled_value, filled_gradient = with_gradient(
        lambda rows: pointer.loss(rows, filled_spans, cu_words, bounds, longest), filled
    )
    torch.testing.assert_close(filled_value, value, rtol=1e-12, atol=0)
    torch.testing.assert_close(filled_gradient[: len(outputs)], gradient, rtol=1e-11, atol=1e-13)
    assert (filled_gradient[len(outputs) :] == 0).all()

    extents, scores = pointer.decode(outputs, cu_words, longest, nested=True)
    assert len(extents) > 20
    with_filler = pointer.decode(filled, cu_words, longest, nested=True)
    assert torch.equal(with_filler[0], extents)
    assert torch.equal(with_filler[1], scores)


def test_sentences_do_not_see_each_other(layout):
    """The loss of a batch is the sum of those of its sentences alone; so is its gradient."""
    outputs, spans = random_outputs(sum(LENGTHS)), torch.tensor(SPANS)
    pointer = model()
    value, gradient = with_gradient(lambda rows: pointer.loss(rows, spans, *where(LENGTHS)), outputs)
    alone = []
    for sentence, (length, rows) in enumerate(zip(LENGTHS, outputs.split(LENGTHS), strict=True)):
        own = spans[spans[:, 0] == sentence] * torch.tensor([0, 1, 1, 1])
        alone.append(
            with_gradient(lambda rows, own=own, length=length: pointer.loss(rows, own, *where([length])), rows)
        )
    values, gradients = zip(*alone, strict=True)
    torch.testing.assert_close(sum(values), value, rtol=1e-12, atol=0)
    torch.testing.assert_close(torch.cat(gradients), gradient, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("words", [0, 3])
def test_no_sentences(layout, words):
    """Not even where there are words of filler."""
    pointer, spans = model(), torch.zeros(0, 4, dtype=torch.int64)
    outputs = pointer(torch.randn(words, 5, dtype=torch.float64))
    cu_words = torch.zeros(1, dtype=torch.int32)
    loss = pointer.loss(outputs, spans, cu_words, torch.tensor([0, words], dtype=torch.int32), words)
    loss.backward()
    assert loss.item() == 0
    assert (pointer.bounds.bias.grad == 0).all()
    extents, scores = pointer.decode(outputs.detach(), cu_words, words, nested=False)
    assert (tuple(extents.shape), extents.dtype, tuple(scores.shape)) == ((0, 4), torch.int64, (0,))


def test_nothing_of_the_static_layout_waits_for_the_device(monkeypatch):
    """Tensors without values: whatever would have to read one raises."""
    use_layout(monkeypatch, "static", 1)
    with FakeTensorMode():
        pointer = GlobalPointer(5, TYPES, HEAD_SIZE)
        states = torch.empty(20, 5, requires_grad=True)
        cu_words, bounds = torch.empty(4, dtype=torch.int32), torch.empty(5, dtype=torch.int32)
        loss = pointer.loss(pointer(states), torch.empty(6, 4, dtype=torch.int64), cu_words, bounds, 8)
        loss.backward()
        assert states.grad.shape == states.shape
        with torch.no_grad():
            assert pointer.loss(pointer(states), torch.empty(0, 4, dtype=torch.int64), cu_words, bounds, 8).shape == ()


def test_cpu_tensors_are_laid_out_in_groups_of_like_length(monkeypatch):
    monkeypatch.setattr("bertorch.span_cells.PADDING_OF_BLOCK", 100)
    lengths = [3, 50, 2, 49, 50, 10, 4]
    layout = CellLayout.of(offsets(lengths), sum(lengths), 50)
    assert [tuple(block.words.shape) for block in layout.blocks] == [(3, 50), (2, 10), (2, 3)]
    assert not layout.is_static
    words = [
        block.words[row][block.is_word[row]].tolist() for block in layout.blocks for row in range(len(block.words))
    ]
    starts = offsets(lengths).tolist()
    assert words == [list(range(starts[sentence], starts[sentence + 1])) for sentence in layout.order.tolist()]


class LargestTensor(TorchDispatchMode):
    """The most elements that any tensor made under it has."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor) and tensor.numel() <= tensor.untyped_storage().size():
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize("scale", [1.0, 100.0], ids=["products", "with underflow"])
@pytest.mark.parametrize("kind", ["grouped", "static"])
def test_memory_is_never_that_of_all_types(monkeypatch, dense_pairs, kind, scale):
    """Neither does a tensor have C · L² elements, nor does autograd keep as many."""
    use_layout(monkeypatch, kind, 1, 2**16)
    lengths, head_size = [200, 190], 8
    words, cells = sum(lengths), len(lengths) * 201**2

    def measured(types: int) -> tuple[int, int]:
        outputs = random_outputs(words, types=types, head_size=head_size, scale=scale).float().requires_grad_()
        pointer, spans = GlobalPointer(5, types, head_size), random_spans(lengths, types, each=12)
        storages = {}

        def keep(tensor):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().size() // tensor.element_size()
            return tensor

        with LargestTensor() as largest, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            pointer.loss(outputs, spans, *where(lengths)).backward()
        return largest.elements, sum(storages.values())

    (largest, kept), (twice_largest, twice_kept) = measured(40), measured(80)
    assert lengths[0] ** 2 < largest <= twice_largest <= cells + 1  # the scores of all cells, for one type or for all
    assert kept < cells + 12 * words * (head_size + 40)
    assert twice_kept - kept < 12 * words * 40
    if kind == "grouped":
        assert (sum(dense_pairs) > 0) == (scale > 1)


def test_nothing_is_kept_without_a_gradient():
    pointer, kept = model(), []
    with torch.no_grad(), torch.autograd.graph.saved_tensors_hooks(kept.append, lambda tensor: tensor):
        loss = pointer.loss(random_outputs(sum(LENGTHS)), torch.tensor(SPANS), *where(LENGTHS))
    assert not kept
    assert not loss.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_and_half_precision_outputs_change_nothing(layout, dtype):
    """The results are those of fp32 on the same numbers, to the last bit."""
    pointer, outputs = GlobalPointer(5, TYPES, HEAD_SIZE), random_outputs(sum(LENGTHS)).to(dtype)

    def results(rows):
        loss, gradient = with_gradient(lambda rows: pointer.loss(rows, torch.tensor(SPANS), *where(LENGTHS)), rows)
        assert gradient.dtype == rows.dtype
        return [loss, gradient.float(), *pointer.decode(rows, offsets(LENGTHS), max(LENGTHS), nested=True)]

    expected = results(outputs.float())
    expected[1] = expected[1].to(dtype).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        given = results(outputs)
    for one, other in zip(given, expected, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


def test_outputs_are_fp32_under_autocast():
    """Only W h is of lower precision; a and b are linear in it."""
    torch.manual_seed(0)
    pointer, states = GlobalPointer(32, TYPES, HEAD_SIZE), torch.randn(7, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = pointer(states)
        outputs.sum().backward()
    assert outputs.dtype == torch.float32
    queries_keys = outputs[:, : 2 * HEAD_SIZE]
    assert torch.equal(queries_keys, queries_keys.bfloat16().float())
    assert torch.equal(outputs[:, 2 * HEAD_SIZE :], pointer.bounds(queries_keys) / 2)
    assert GlobalPointer(32, TYPES).double()(states.double()).dtype == torch.float64


def test_a_fresh_head_finds_nothing_and_its_loss_is_of_order_one():
    """States of the size that layer normalisation gives; without entities, each type's loss is log(1 + about 1)."""
    torch.manual_seed(0)
    lengths = [46] * 8
    pointer = GlobalPointer(128, 10)
    outputs = pointer(torch.randn(sum(lengths), 128))
    assert outputs.shape == (sum(lengths), 2 * 64 + 2 * 10)
    assert len(pointer.decode(outputs, offsets(lengths), 46, nested=True)[0]) == 0
    loss = pointer.loss(outputs, torch.zeros(0, 4, dtype=torch.int64), *where(lengths)).item() / len(lengths)
    assert 0.5 < loss < 1.0
    assert list(pointer.state_dict()) == ["queries_keys.weight", "queries_keys.bias", "bounds.weight", "bounds.bias"]


@pytest.mark.parametrize("head_size", [0, 7, -2])
def test_an_odd_head_size_is_refused(head_size):
    with pytest.raises(ValueError, match="expected an even head_size from 2, as rotary positions turn pairs"):
        GlobalPointer(5, TYPES, head_size)


def found_by_loops(outputs, lengths, *, nested: bool) -> list[tuple[list[int], float]]:
    results = []
    for sentence, scores in enumerate(all_scores(outputs.double(), lengths)):
        cells = [
            (-scores[i, j, kind].item(), i, j + 1, kind)
            for i in range(len(scores))
            for j in range(i, len(scores))
            for kind in range(TYPES)
            if scores[i, j, kind] > 0
        ]
        kept = []
        for cell in sorted(cells):
            if nested or all(cell[1] >= end or cell[2] <= start for _, start, end, _ in kept):
                kept.append(cell)
        results += [([sentence, *rest], 1 / (1 + math.exp(score))) for score, *rest in kept]
    return sorted(results)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("bias", [-8.0, -2.0, 3.0])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("at_once", [1, 2**22])
def test_decoding_is_that_of_loops(monkeypatch, at_once, seed, bias, nested):
    use_layout(monkeypatch, "grouped", at_once, 2**16)
    outputs = random_outputs(sum(LENGTHS), scale=2.0, seed=seed)
    outputs[:, 2 * HEAD_SIZE :] += bias / 2
    extents, scores = model().decode(outputs, offsets(LENGTHS), max(LENGTHS), nested=nested)
    expected = found_by_loops(outputs, LENGTHS, nested=nested)
    assert extents.tolist() == [cell for cell, _ in expected]
    torch.testing.assert_close(scores.tolist(), [score for _, score in expected], rtol=1e-10, atol=1e-12)
    assert bias < -2 or len(expected) > len(LENGTHS)


def test_ties_go_to_the_first_word_then_the_end_then_the_type():
    outputs = torch.zeros(3, 2 * HEAD_SIZE + 2 * TYPES)
    outputs[:, -TYPES:] = 1.0
    extents, scores = model().decode(outputs, offsets([3]), 3, nested=False)
    assert extents.tolist() == [[0, 0, 1, 0], [0, 1, 2, 0], [0, 2, 3, 0]]
    assert scores.tolist() == pytest.approx([1 / (1 + math.exp(-1))] * 3)
    assert len(model().decode(outputs, offsets([3]), 3, nested=True)[0]) == 6 * TYPES


def test_scores_that_round_to_the_same_probability_keep_their_order():
    outputs = torch.zeros(2, 2 * HEAD_SIZE + 2 * TYPES)
    outputs[:, 2 * HEAD_SIZE + 1] = torch.tensor([100.0, 150.0])  # a of the second type
    outputs[:, -TYPES:] = torch.tensor([[-200.0], [0.0]])  # only cells that end with the second word
    extents, scores = model().decode(outputs, offsets([2]), 2, nested=False)
    assert extents.tolist() == [[0, 1, 2, 1]]
    assert scores.tolist() == [1.0]


def test_memory_of_decoding_is_that_of_the_words(monkeypatch):
    """One cell of 40 types is found among 40 · 300², in bands of first words."""
    use_layout(monkeypatch, "grouped", 2**10, 2**16)
    lengths, types = [300, 290], 40
    outputs = random_outputs(sum(lengths), types=types, head_size=8, scale=0.1).float()
    outputs[:, 16:] -= 20
    outputs[304, 16 + 7] += 25  # a of type 7, word 4 of the second sentence
    outputs[314, 16 + types + 7] += 25  # b of type 7, word 14
    with LargestTensor() as largest:
        extents, _ = GlobalPointer(5, types, 8).decode(outputs, offsets(lengths), 300, nested=True)
    assert extents.tolist() == [[1, 4, 15, 7]]
    assert largest.elements <= outputs.numel() < 300**2


def test_word_scores_split_what_the_head_gives():
    """In the order of the formula, as the static and the grouped layout read it."""
    parts = WordScores.of(torch.arange(20.0).expand(3, 20), TYPES)
    assert [part[0].tolist() for part in parts] == [
        [0, 1, 2, 3, 4, 5],
        [6, 7, 8, 9, 10, 11],
        [12, 13, 14, 15],
        [16, 17, 18, 19],
    ]
