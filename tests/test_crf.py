"""The CRF against enumeration of all paths, finite differences, and pytorch-crf."""

import math
from dataclasses import dataclass
from itertools import combinations_with_replacement, pairwise, product

import pytest
import torch
import torchcrf
from torch._subclasses.fake_tensor import FakeTensorMode

from bertorch.crf import CRF, FORBIDDEN, Constraints

LABELS = 3
LENGTHS = [4, 1, 3, 2, 5]
# As in IOB2 with O, B and I: I follows B and I only.
IOB2 = Constraints(
    start=torch.tensor([True, True, False]),
    end=torch.tensor([True, True, True]),
    transitions=torch.tensor([[True, True, False], [True, True, True], [True, True, True]]),
)
# Nearly everything is forbidden: 0 → 1 → 2 → 0 is the only way.
CYCLE = Constraints(
    start=torch.tensor([True, False, False]),
    transitions=torch.tensor([[False, True, False], [False, False, True], [True, False, False]]),
)
CONSTRAINTS = {"free": None, "IOB2": IOB2, "cycle": CYCLE}


def offsets(lengths: list[int], dtype=torch.int32) -> torch.Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(dtype)


def random_crf(num_labels=LABELS, constraints=None, *, constrain_training=False, scale=1.0, dtype=torch.float64) -> CRF:
    crf = CRF(num_labels, constraints, constrain_training=constrain_training).to(dtype)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in crf.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, dtype=torch.float64, generator=generator))
    return crf


def random_emissions(tokens: int, labels=LABELS, *, scale=1.0) -> torch.Tensor:
    return scale * torch.randn(tokens, labels, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def random_tags(tokens: int, labels=LABELS) -> torch.Tensor:
    return torch.randint(labels, (tokens,), generator=torch.Generator().manual_seed(2))


@dataclass(frozen=True)
class Enumeration:
    """All paths of one sequence with their scores, in plain Python; the constraints count if they are given."""

    scores: dict[tuple[int, ...], float]

    @classmethod
    def of(cls, crf: CRF, emissions: torch.Tensor, constraints: Constraints | None = None) -> "Enumeration":
        rows = emissions.tolist()
        start, end, moves = (
            tensor.tolist() for tensor in (crf.start_transitions, crf.end_transitions, crf.transitions)
        )
        scores = {}
        for path in product(range(crf.num_labels), repeat=len(rows)):
            if constraints is None or allows(constraints, path):
                score = start[path[0]] + end[path[-1]] + sum(row[tag] for row, tag in zip(rows, path, strict=True))
                scores[path] = score + sum(moves[i][j] for i, j in pairwise(path))
        return cls(scores)

    def log_partition(self) -> float:
        peak = max(self.scores.values())
        return peak + math.log(math.fsum(math.exp(score - peak) for score in self.scores.values()))

    def log_prob(self, first: int, tags: tuple[int, ...]) -> float:
        """That the tokens from `first` on have exactly these tags."""
        whole, part = self.log_partition(), slice(first, first + len(tags))
        logs = [score - whole for path, score in self.scores.items() if path[part] == tags]
        return math.log(math.fsum(map(math.exp, logs))) if logs else -math.inf

    def best(self) -> list[tuple[int, ...]]:
        """Best first; of equally good paths, that with the smaller last tag first, then that before."""
        return sorted(self.scores, key=lambda path: (-self.scores[path], path[::-1]))


def allows(constraints: Constraints, path: tuple[int, ...]) -> bool:
    return (
        (constraints.start is None or bool(constraints.start[path[0]]))
        and (constraints.end is None or bool(constraints.end[path[-1]]))
        and (constraints.transitions is None or all(constraints.transitions[i, j] for i, j in pairwise(path)))
    )


def enumerations(crf: CRF, emissions: torch.Tensor, constraints=None, lengths=LENGTHS) -> list[Enumeration]:
    return [Enumeration.of(crf, part, constraints) for part in emissions.split(lengths)]


def marginals(crf: CRF, emissions: torch.Tensor, *where) -> torch.Tensor:
    """(T, C) probability of each tag at each token."""
    tags = torch.arange(crf.num_labels)[:, None].expand(-1, len(emissions))  # (C, T)
    return torch.stack([crf.path_log_probs(emissions, row, *where)[0].exp() for row in tags], dim=1)


def paths(tags: torch.Tensor, lengths=LENGTHS) -> list[tuple[int, ...]]:
    return [tuple(part.tolist()) for part in tags.split(lengths)]


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("slack", [0, 3])
@pytest.mark.parametrize("constraints", CONSTRAINTS.values(), ids=CONSTRAINTS)
def test_probabilities_are_those_of_all_paths(constraints, slack, dtype):
    """With constraints, only the allowed paths count; `max_seqlen` may be larger than needed."""
    crf = random_crf(constraints=constraints, constrain_training=True)
    emissions = random_emissions(sum(LENGTHS))
    every = enumerations(crf, emissions, constraints)
    where = (offsets(LENGTHS, dtype), max(LENGTHS) + slack)

    for tags in (torch.cat([torch.tensor(one.best()[rank]) for one in every]) for rank in (0, -1)):
        logs = [one.scores[path] - one.log_partition() for one, path in zip(every, paths(tags), strict=True)]
        expected = torch.tensor(logs, dtype=torch.float64)
        torch.testing.assert_close(crf.log_likelihood(emissions, tags, *where), expected, rtol=1e-12, atol=1e-12)
        with torch.no_grad():  # without a gradient, one direction does
            torch.testing.assert_close(crf.log_likelihood(emissions, tags, *where), expected, rtol=1e-12, atol=1e-12)

    expected = [
        [math.exp(one.log_prob(index, (tag,))) for tag in range(LABELS)]
        for one, length in zip(every, LENGTHS, strict=True)
        for index in range(length)
    ]
    expected = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(marginals(crf, emissions, *where), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(crf.marginals(emissions, *where), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("constrain_training", [False, True])
@pytest.mark.parametrize("constraints", CONSTRAINTS.values(), ids=CONSTRAINTS)
def test_probabilities_of_parts_are_those_of_all_paths_with_them(constraints, constrain_training):
    """Of every part of the best path and of a random one, in every sequence."""
    crf = random_crf(constraints=constraints, constrain_training=constrain_training)
    emissions, where = random_emissions(sum(LENGTHS)), (offsets(LENGTHS), max(LENGTHS) + 1)
    every = enumerations(crf, emissions, constraints if constrain_training else None)
    for tags in (crf.viterbi(emissions, *where), random_tags(sum(LENGTHS))):
        ends, links = crf.path_log_probs(emissions, tags, *where)
        assert (links[where[0][:-1].long()] == 0).all()
        for one, path, end, link in zip(every, paths(tags), ends.split(LENGTHS), links.split(LENGTHS), strict=True):
            for i, j in combinations_with_replacement(range(len(path)), 2):
                log_prob, expected = (end[j] + link[i + 1 : j + 1].sum()).item(), one.log_prob(i, path[i : j + 1])
                if expected == -math.inf:  # it breaks a constraint
                    assert log_prob < FORBIDDEN / 2
                else:
                    assert log_prob == pytest.approx(expected, rel=1e-10, abs=1e-10)


def test_tags_of_a_crf_that_is_not_learned_are_independent(batch):
    lengths, emissions, tags = batch
    ends, links = CRF(9, learned=False).path_log_probs(emissions, tags, offsets(lengths), max(lengths))
    alone = emissions.log_softmax(dim=1).gather(1, tags[:, None]).squeeze(1)
    torch.testing.assert_close(ends, alone, rtol=1e-10, atol=1e-10)
    for link, expected in zip(links.split(lengths), alone.split(lengths), strict=True):
        torch.testing.assert_close(link[1:], expected[:-1], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("constraints", CONSTRAINTS.values(), ids=CONSTRAINTS)
def test_constraints_do_not_count_in_training_by_default(constraints):
    free, constrained = random_crf(), random_crf(constraints=constraints)
    emissions, tags, where = random_emissions(15), random_tags(15), (offsets(LENGTHS), 5)
    assert torch.equal(
        constrained.log_likelihood(emissions, tags, *where), free.log_likelihood(emissions, tags, *where)
    )
    assert torch.equal(marginals(constrained, emissions, *where), marginals(free, emissions, *where))


def test_tags_that_break_a_constraint_are_unlikely_but_finite():
    crf = random_crf(constraints=IOB2, constrain_training=True)
    emissions = random_emissions(3).requires_grad_()
    likelihood = crf.log_likelihood(emissions, torch.tensor([0, 2, 2]), offsets([3]), 3)
    likelihood.sum().backward()
    assert likelihood.item() == pytest.approx(FORBIDDEN, rel=1e-2)
    assert emissions.grad.isfinite().all()
    assert crf.transitions.grad[0, 2] == 0
    assert crf.start_transitions.grad[2] == 0


@pytest.mark.parametrize("constraints", CONSTRAINTS.values(), ids=CONSTRAINTS)
@pytest.mark.parametrize("ties", [False, True])
def test_viterbi_is_the_best_of_all_paths(constraints, ties):
    """With ties, all scores are whole numbers, so that equal scores are equal in binary too."""
    for seed in range(5):
        crf = random_crf(constraints=constraints)
        emissions = random_emissions(100)[seed * 15 :][:15]
        if ties:
            emissions = emissions.round()
            with torch.no_grad():
                for parameter in crf.parameters():
                    parameter.round_()
        expected = [one.best()[0] for one in enumerations(crf, emissions, constraints)]
        assert paths(crf.viterbi(emissions, offsets(LENGTHS), max(LENGTHS))) == expected


def test_of_paths_that_are_all_equal_viterbi_takes_tag_zero():
    crf = random_crf(scale=0.0)
    assert crf.viterbi(torch.zeros(15, LABELS), offsets(LENGTHS), 5).tolist() == [0] * 15


@pytest.mark.parametrize("constraints", [None, IOB2], ids=["free", "IOB2"])
def test_gradients_are_finite_differences(constraints):
    crf = random_crf(constraints=constraints, constrain_training=True)
    emissions, where = random_emissions(sum(LENGTHS)).requires_grad_(), (offsets(LENGTHS), max(LENGTHS))
    tags = crf.viterbi(emissions, *where)  # allowed ones: no digit is lost to FORBIDDEN

    def function(rows, *_):  # finite differences change the parameters in place, where the CRF sees them
        return crf.log_likelihood(rows, tags, *where)

    assert torch.autograd.gradcheck(function, (emissions, *crf.parameters()))


@pytest.mark.parametrize("pairs", [None, 1, 4 * LABELS**2])
def test_gradients_are_those_of_an_enumerated_logsumexp(pairs, monkeypatch):
    """However many tokens' pairs are worked out at once, and whatever weighs the sequences."""
    if pairs is not None:
        monkeypatch.setattr("bertorch.crf_recursions.PAIRS_AT_ONCE", pairs)
    crf, weights = random_crf(), torch.tensor([1.0, -2.0, 0.5, 0.0, 3.0], dtype=torch.float64)
    emissions, tags = random_emissions(sum(LENGTHS)).requires_grad_(), random_tags(sum(LENGTHS))
    inputs = (emissions, *crf.parameters())
    log_likelihood = crf.log_likelihood(emissions, tags, offsets(LENGTHS), max(LENGTHS))
    given = torch.autograd.grad(log_likelihood @ weights, inputs)

    expected = []
    for part, right in zip(emissions.split(LENGTHS), paths(tags), strict=True):
        scores = {}
        for path in product(range(LABELS), repeat=len(part)):
            chosen = [part[t, tag] for t, tag in enumerate(path)]
            moves = [crf.transitions[i, j] for i, j in pairwise(path)]
            scores[path] = sum([*chosen, *moves]) + crf.start_transitions[path[0]] + crf.end_transitions[path[-1]]
        expected.append(scores[right] - torch.stack(list(scores.values())).logsumexp(0))
    wanted = torch.autograd.grad(torch.stack(expected) @ weights, inputs)
    for ours, theirs in zip(given, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


def test_what_needs_no_gradient_gets_none():
    crf = random_crf()
    emissions, tags, where = random_emissions(15), random_tags(15), (offsets(LENGTHS), 5)
    crf.log_likelihood(emissions, tags, *where).sum().backward()
    expected = [parameter.grad for parameter in crf.parameters()]
    frozen = random_crf().requires_grad_(False)
    assert not frozen.log_likelihood(emissions, tags, *where).requires_grad
    frozen.transitions.requires_grad_()
    frozen.log_likelihood(emissions, tags, *where).sum().backward()
    assert torch.equal(frozen.transitions.grad, expected[2])
    assert frozen.start_transitions.grad is None


@pytest.fixture
def batch():
    """Lengths, emissions (T, C) and tags (T,) of a batch of realistic size."""
    lengths = torch.randint(1, 61, (16,), generator=torch.Generator().manual_seed(3)).tolist()
    return lengths, random_emissions(sum(lengths), 9, scale=2.0), random_tags(sum(lengths), 9)


def padded(packed: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(packed.split(lengths), batch_first=True)


@pytest.mark.parametrize("reduction", ["sum", "weighted"])
def test_it_is_pytorch_crf(batch, reduction):
    """Values, gradients and best paths, in float64."""
    reference = torchcrf.CRF(9, batch_first=True).double()
    lengths, emissions, tags = batch
    crf, where = random_crf(9), (offsets(lengths), max(lengths))
    reference.load_state_dict(crf.state_dict())  # the parameters have the same names
    mask = padded(torch.ones(len(emissions), dtype=torch.bool), lengths)
    weights = torch.ones(16).double() if reduction == "sum" else torch.linspace(-1, 2, 16).double()

    emissions.requires_grad_()
    ours = crf.log_likelihood(emissions, tags, *where)
    theirs = reference(padded(emissions, lengths), padded(tags, lengths), mask, reduction="none")
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-11)
    given = torch.autograd.grad(ours @ weights, (emissions, *crf.parameters()))
    wanted = torch.autograd.grad(theirs @ weights, (emissions, *reference.parameters()))
    for one, other in zip(given, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-11)
    decoded = [tuple(path) for path in reference.decode(padded(emissions, lengths), mask)]
    assert paths(crf.viterbi(emissions, *where), lengths) == decoded


def test_sequences_do_not_depend_on_their_neighbours_or_order(batch):
    lengths, emissions, tags = batch
    crf = random_crf(9)

    def outputs(order):
        """Of each sequence in `order`: likelihood, best path, and what gives the probabilities of parts."""
        rows = torch.cat([emissions.split(lengths)[n] for n in order])
        own = torch.cat([tags.split(lengths)[n] for n in order])
        sizes = [lengths[n] for n in order]
        where = (offsets(sizes), max(sizes))
        of_tokens = (crf.viterbi(rows, *where), *crf.path_log_probs(rows, own, *where))
        return [crf.log_likelihood(rows, own, *where), *(tensor.split(sizes) for tensor in of_tokens)]

    together = outputs(range(16))
    order = torch.randperm(16, generator=torch.Generator().manual_seed(4)).tolist()
    for one, other in zip(together, outputs(order), strict=True):
        torch.testing.assert_close([one[n] for n in order], list(other), rtol=1e-12, atol=1e-12)
    for n in range(16):
        for one, other in zip(together, outputs([n]), strict=True):
            torch.testing.assert_close(one[n], other[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("constraints", [None, "chain"])
def test_long_sequences_of_large_scores_are_as_exact_as_fp32_allows(constraints):
    """512 tokens with emissions of ±50: scores above 10000, while gradients keep five digits."""
    chain = Constraints(transitions=(torch.arange(9)[:, None] - torch.arange(9)).abs() <= 1)
    settings = {"constraints": chain if constraints else None, "constrain_training": True, "scale": 3.0}
    lengths = [512, 17, 300]
    where, tokens = (offsets(lengths), 512), sum(lengths)
    emissions = 100 * torch.rand(tokens, 9, generator=torch.Generator().manual_seed(5)) - 50

    tags = random_crf(9, **settings, dtype=torch.float32).double().viterbi(emissions.double(), *where)
    assert torch.equal(random_crf(9, **settings, dtype=torch.float32).viterbi(emissions, *where), tags)

    def outputs(dtype):
        crf = random_crf(9, **settings, dtype=torch.float32).to(dtype)  # the same numbers in both types
        rows = emissions.to(dtype).requires_grad_()
        likelihood = crf.log_likelihood(rows, tags, *where)
        gradients = torch.autograd.grad(likelihood.sum(), (rows, *crf.parameters()))
        return [likelihood, marginals(crf, rows, *where), *crf.path_log_probs(rows, tags, *where), *gradients]

    exact, rounded = outputs(torch.float64), outputs(torch.float32)
    assert emissions.gather(1, tags[:, None])[:512].sum() > 10000
    for name, one, other, tolerance in zip(
        ("likelihood", "marginals", "ends", "links", "emissions", "start", "end", "transitions"),
        exact,
        rounded,
        (5e-4, 1e-5, 1e-5, 1e-5, 1e-5, 1e-6, 1e-6, 3e-5),
        strict=True,
    ):
        assert other.dtype == torch.float32
        assert (one - other).abs().max() < tolerance, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_and_half_precision_emissions_change_nothing(batch, dtype):
    """The results are those of fp32 on the same numbers, to the last bit."""
    lengths, emissions, tags = batch
    crf, where = random_crf(9, dtype=torch.float32), (offsets(lengths), max(lengths))

    def outputs(rows):
        rows = rows.detach().clone().requires_grad_()
        likelihood = crf.log_likelihood(rows, tags, *where)
        gradients = torch.autograd.grad(likelihood.sum(), (rows, *crf.parameters()))
        assert gradients[0].dtype == rows.dtype
        return [likelihood, *crf.path_log_probs(rows, tags, *where), crf.viterbi(rows, *where), *gradients]

    given = emissions.to(dtype)
    expected = outputs(given.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        results = outputs(given)
    expected[-4] = expected[-4].to(dtype)  # the gradient of the emissions has their type
    for one, other in zip(results, expected, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


def test_decoding_keeps_to_the_constraints(batch):
    """Also where the scores are all for breaking them."""
    lengths, emissions, _ = batch
    entity = torch.arange(9) % 3  # O, B, I of three kinds
    may_follow = (entity != 2) | (torch.isin(entity, torch.tensor([1, 2]))[:, None] & _same_kind(9))
    constraints = Constraints(start=entity != 2, transitions=may_follow)
    crf = random_crf(9, constraints)
    emissions = emissions + 30 * (entity == 2)
    where = (offsets(lengths), max(lengths))
    for path in paths(crf.viterbi(emissions, *where), lengths):
        assert allows(constraints, path)


def _same_kind(labels: int) -> torch.Tensor:
    kinds = torch.arange(labels) // 3
    return kinds[:, None] == kinds


def test_a_tag_of_score_minus_infinity_is_as_if_it_were_not_there():
    crf, emissions, where = random_crf(), random_emissions(15), (offsets(LENGTHS), 5)
    emissions[:, 1] = -torch.inf
    emissions.requires_grad_()
    smaller = CRF(2).double()
    kept = torch.tensor([0, 2])
    smaller.load_state_dict(
        {
            "start_transitions": crf.start_transitions[kept],
            "end_transitions": crf.end_transitions[kept],
            "transitions": crf.transitions[kept][:, kept],
        }
    )
    rest = emissions.detach()[:, kept].requires_grad_()
    tags = torch.randint(2, (15,), generator=torch.Generator().manual_seed(2))
    one = crf.log_likelihood(emissions, kept[tags], *where)
    other = smaller.log_likelihood(rest, tags, *where)
    torch.testing.assert_close(one, other)
    one.sum().backward()
    other.sum().backward()
    torch.testing.assert_close(emissions.grad[:, kept], rest.grad)
    assert (emissions.grad[:, 1] == 0).all()
    torch.testing.assert_close(crf.transitions.grad[kept][:, kept], smaller.transitions.grad)
    assert torch.equal(crf.viterbi(emissions, *where), kept[smaller.viterbi(rest, *where)])
    for one, other in zip(
        crf.path_log_probs(emissions, kept[tags], *where), smaller.path_log_probs(rest, tags, *where), strict=True
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("longest", [0, 4])
def test_no_sequences(longest):
    crf, emissions, where = random_crf(), torch.zeros(0, LABELS, requires_grad=True), (offsets([]), longest)
    tags = torch.zeros(0, dtype=torch.int64)
    likelihood = crf.log_likelihood(emissions, tags, *where)
    likelihood.sum().backward()
    assert likelihood.shape == (0,)
    assert (crf.transitions.grad == 0).all()
    assert [tensor.shape for tensor in crf.path_log_probs(emissions, tags, *where)] == [(0,), (0,)]
    assert crf.viterbi(emissions, *where).shape == (0,)


def test_nothing_waits_for_the_device():
    """Tensors without values: whatever would have to read one raises."""
    with FakeTensorMode():
        crf = CRF(LABELS, Constraints(start=torch.ones(LABELS, dtype=torch.bool)), constrain_training=True)
        emissions, tags = torch.empty(15, LABELS, requires_grad=True), torch.empty(15, dtype=torch.int64)
        where = (torch.empty(6, dtype=torch.int32), 5)
        crf.log_likelihood(emissions, tags, *where).sum().backward()
        assert emissions.grad.shape == emissions.shape
        with torch.no_grad():
            assert crf.log_likelihood(emissions, tags, *where).shape == (5,)
        assert [tensor.shape for tensor in crf.path_log_probs(emissions, tags, *where)] == [(15,), (15,)]
        assert crf.viterbi(emissions, *where).shape == (15,)


def test_fresh_parameters_and_what_is_saved():
    torch.manual_seed(0)
    crf = CRF(50, Constraints(start=torch.zeros(50, dtype=torch.bool)))
    assert list(crf.state_dict()) == ["start_transitions", "end_transitions", "transitions"]
    assert [tuple(tensor.shape) for tensor in crf.state_dict().values()] == [(50,), (50,), (50, 50)]
    assert crf.transitions.min().item() == pytest.approx(-0.1, abs=1e-3)
    assert crf.transitions.max().item() == pytest.approx(0.1, abs=1e-3)


@pytest.mark.parametrize(
    "constraints",
    [
        Constraints(start=torch.ones(4, dtype=torch.bool)),
        Constraints(end=torch.ones(3)),
        Constraints(transitions=torch.ones(3, dtype=torch.bool)),
    ],
    ids=["wrong size", "not bool", "wrong shape"],
)
def test_wrong_constraints_are_refused(constraints):
    with pytest.raises(ValueError, match="a constraint is torch"):
        CRF(LABELS, constraints)
