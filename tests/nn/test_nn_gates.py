"""Gates: gradients against finite differences, straight-through values, EMA, selections, openness."""

import pytest
import torch
from thinning import thinned

from routespace.errors import SpecError
from routespace.grid.gate_spec import GateSpec
from routespace.nn.routing import gates
from routespace.nn.routing.deciding import Deciding
from routespace.nn.routing.gates import Gate

HW = (5, 6)
WIDTH = 4
KINDS = ["gumbel", "sigmoid", "tanh"]
GRANULARITIES = ["layer", "image", "token", "window"]


def make_gate(*, rows: bool = True, granularity: str = "token", **fields) -> tuple[Gate, GateSpec]:
    torch.manual_seed(0)
    spec = GateSpec(rows="token" if fields.get("capacity") else granularity, columns=granularity, **fields)
    gate = Gate(spec, granularity, WIDTH, rows=rows)
    if gate.learned and gate.weight is not None:
        torch.nn.init.normal_(gate.weight, std=0.5)
        gate.ema_weight.copy_(gate.weight.detach())
    return gate, spec


def at(spec: GateSpec, temperature: float = 1.0) -> Deciding:
    return Deciding(spec, temperature, noise=1.0)


def places(granularity: str, rows: bool) -> int:
    if granularity in ("layer", "image"):
        return 1
    return HW[0] * HW[1] if rows else 9


@pytest.mark.parametrize(*thinned(kind=KINDS, granularity=GRANULARITIES, rows=[True, False]))
def test_gradient_of_the_relaxation_by_finite_differences(kind, granularity, rows, monkeypatch):
    noise = {}

    def frozen(like, *, shared):
        if like.shape not in noise:
            noise[like.shape] = torch.randn(like.shape, dtype=like.dtype) * 0.3
        return noise[like.shape]

    monkeypatch.setattr(gates, "logistic_noise", frozen)
    monkeypatch.setattr(torch.Tensor, "float", lambda self: self)  # finite differences need double precision
    gate, spec = make_gate(rows=rows, granularity=granularity, kind=kind, relaxation="soft", openness=0.6)
    gate = gate.double().train()
    parameters = [p for p in (gate.weight, gate.bias) if p is not None]
    start = torch.randn(2, HW[0] * HW[1], WIDTH, dtype=torch.double, requires_grad=True)

    def value(x, *_):
        return gate(x, HW, at(spec, 0.7)).value

    assert value(start).shape == (2, places(granularity, rows))
    assert torch.autograd.gradcheck(value, (start, *parameters), check_undefined_grad=False)


@pytest.mark.parametrize("kind", ["gumbel", "sigmoid"])
def test_straight_through_is_hard_forward_and_soft_backward(kind):
    gate, spec = make_gate(kind=kind, openness=0.5)
    soft_spec = spec.model_copy(update={"relaxation": "soft"})
    x = torch.randn(3, HW[0] * HW[1], WIDTH)
    grads = []
    for chosen in (spec, soft_spec):
        torch.manual_seed(5)  # the same noise
        decision = gate(x, HW, at(chosen))
        grads.append(torch.autograd.grad(decision.value.square().sum() / 2 + decision.value.sum(), gate.bias)[0])
        if chosen is spec:
            hard = decision.value
            assert set(hard.unique().tolist()) == {0.0, 1.0}
            (got,) = torch.autograd.grad((gate(x, HW, at(spec)).value * 0).sum(), gate.bias)
            assert not got.any()
        else:
            assert torch.equal((decision.value > 0.5).float(), hard.detach())
    torch.manual_seed(5)
    soft = gate(x, HW, at(soft_spec)).value
    (want,) = torch.autograd.grad((soft * (hard.detach() + 1)).sum(), gate.bias)
    assert torch.allclose(grads[0], want, rtol=1e-5)


def test_tanh_multiplies_and_counts_what_is_open():
    gate, spec = make_gate(kind="tanh", openness=0.2)
    decision = gate(torch.randn(2, HW[0] * HW[1], WIDTH), HW, at(spec))
    assert ((decision.value >= 0) & (decision.value < 1)).all()
    assert torch.equal(decision.counted.detach(), (decision.value > 0).float())
    assert torch.autograd.grad(decision.counted.sum(), gate.bias)[0].abs() > 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("openness", [0.3, 0.9])
def test_untrained_gate_opens_as_often_as_asked(kind, openness):
    gate, spec = make_gate(kind=kind, openness=openness)
    torch.nn.init.zeros_(gate.weight)
    decision = gate.train()(torch.randn(200, 100, WIDTH), (10, 10), at(spec))
    if kind == "gumbel":
        assert decision.value.mean().item() == pytest.approx(openness, abs=0.02)
    else:
        assert torch.allclose(decision.chance, torch.tensor(openness))


def test_a_low_temperature_hardens_the_relaxation():
    gate, spec = make_gate(relaxation="soft", openness=0.5)
    x = torch.randn(4, HW[0] * HW[1], WIDTH)
    soft = [gate(x, HW, at(spec, t)).value for t in (5.0, 0.01)]
    assert (soft[0] - 0.5).abs().mean() < 0.25 < 0.4 < (soft[1] - 0.5).abs().mean()


def test_inference_uses_the_ema_and_no_noise():
    gate, spec = make_gate(openness=0.5)
    x = torch.randn(2, HW[0] * HW[1], WIDTH)
    gate.eval()
    before = gate(x, HW, at(spec))
    assert torch.equal(before.value, gate(x, HW, at(spec)).value)
    with torch.no_grad():
        gate.weight.neg_()
        gate.bias.add_(3.0)
    assert torch.equal(before.chance, gate(x, HW, at(spec)).chance)
    first = gate.ema_bias.clone()
    gate.update_ema(0.9)
    assert torch.allclose(gate.ema_bias, 0.9 * first + 0.1 * gate.bias)
    for _ in range(300):
        gate.update_ema(0.9)
    assert not torch.allclose(gate(x, HW, at(spec)).chance, before.chance, atol=0.1)
    assert torch.allclose(gate.ema_weight, gate.weight, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_higher_threshold_opens_less(kind):
    gate, spec = make_gate(kind=kind, openness=0.5)
    gate.eval()
    x = torch.randn(2, HW[0] * HW[1], WIDTH)
    shares = []
    for threshold in (0.05, 0.5, 0.9):
        decision = gate(x, HW, at(spec.model_copy(update={"threshold": threshold})))
        assert torch.equal(decision.value > 0, decision.chance > threshold)
        shares.append((decision.value > 0).float().mean().item())
    assert shares[0] > shares[1] > shares[2]


@pytest.mark.parametrize(
    "fields", [{"kind": "tanh"}, {"relaxation": "soft"}, {"selection": "random"}, {"rows": "window"}]
)
def test_capacity_needs_hard_decisions_by_rank(fields):
    with pytest.raises(ValueError, match="capacity"):
        GateSpec(capacity=True, **fields)


@pytest.mark.parametrize("training", [True, False])
def test_capacity_takes_the_best_places_exactly(training):
    gate, spec = make_gate(capacity=True, keep=0.3)
    decision = gate.train(training)(torch.randn(4, HW[0] * HW[1], WIDTH), HW, at(spec))
    assert decision.per_image == 9
    kept = decision.value > 0
    assert (kept.sum(1) == 9).all()
    for chance, mask in zip(decision.chance, kept, strict=True):
        assert chance[mask].min() >= chance[~mask].max()


def test_random_selection_keeps_its_share_and_has_no_weights():
    gate, spec = make_gate(selection="random", keep=0.3)
    assert not list(gate.parameters())
    value = gate(torch.randn(100, 100, WIDTH), (10, 10), at(spec)).value
    assert value.mean().item() == pytest.approx(0.3, abs=0.02)


def test_attention_selection_keeps_what_the_mean_attends_to():
    gate, spec = make_gate(selection="attention", keep=0.2)
    x = torch.randn(3, 25, WIDTH)
    decision = gate(x, (5, 5), at(spec))
    assert decision.per_image == 5
    scores = torch.einsum("bnc,bc->bn", x, x.mean(1))
    for image in range(3):
        assert set(scores[image].topk(5).indices.tolist()) == set(decision.value[image].nonzero()[:, 0].tolist())


def test_windows_decide_together():
    gate, spec = make_gate(granularity="window", window=2, openness=0.5)
    value = gate(torch.randn(2, HW[0] * HW[1], WIDTH), HW, at(spec)).value.view(2, *HW)
    for y in range(0, HW[0], 2):
        for x in range(0, HW[1], 2):
            square = value[:, y : y + 2, x : x + 2].flatten(1)
            assert (square == square[:, :1]).all()


def test_layer_gate_is_one_number_for_the_batch():
    gate, spec = make_gate(granularity="layer", openness=0.5)
    for _ in range(5):
        value = gate(torch.randn(6, HW[0] * HW[1], WIDTH), HW, at(spec)).value
        assert value.shape == (6, 1)
        assert value.unique().numel() == 1


def test_entropy_selection_keeps_the_busiest_surroundings():
    gate, spec = make_gate(selection="entropy", keep=0.25)
    deciding = Deciding(spec, temperature=1.0, noise=0.0)
    assert not list(gate.parameters())
    x = torch.zeros(2, 64, 8)
    busy = torch.zeros(8, 8, dtype=torch.bool)
    busy[4:, 4:] = True  # a quarter of the map
    x[:, busy.flatten()] = torch.randn(2, 16, 8, generator=torch.Generator().manual_seed(0))
    found = gate(x, (8, 8), deciding).value
    assert found.sum(1).tolist() == [16, 16]
    assert found[:, busy.flatten()].mean() > 0.8
    shifted = gate(x + 5, (8, 8), deciding).value  # what all tokens share tells nothing
    assert torch.equal(found, shifted)
    with pytest.raises(SpecError, match="'entropy' ranks tokens; rows must be 'token'"):
        GateSpec(selection="entropy", rows="image")


def test_a_share_of_places_is_what_it_says():
    """0.55·100 is a little more than 55 in floats; whoever ranks 100 tokens keeps 55 all the same."""
    for percent in range(1, 100):
        assert gates.share_count(percent / 100, 100) == percent
    assert [gates.share_count(keep, 10) for keep in (0.31, 0.01, 1e-12, 1.0)] == [4, 1, 1, 10]
