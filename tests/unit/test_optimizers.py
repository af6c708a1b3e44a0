"""Optimizers against torch.optim's."""

import pytest
import torch

from marl_hpc.optimizers import OptimizerSpec, build, load_state


def values_of(seed, dtype=torch.float64):
    values = torch.nn.Parameter(torch.randn(31, dtype=dtype, generator=torch.Generator().manual_seed(seed)))
    values.grad = torch.zeros_like(values)
    return values


def gradients(steps):
    random = torch.Generator().manual_seed(9)
    return [torch.randn(31, dtype=torch.float64, generator=random) * 10.0 ** (i % 4 - 2) for i in range(steps)]


KINDS = {
    "adam": ({"lr": 1e-2, "eps": 1e-5}, torch.optim.Adam),
    "adam, large steps": ({"lr": 0.3, "eps": 1e-8}, torch.optim.Adam),
    "adamw": ({"lr": 1e-2, "eps": 1e-8, "weight_decay": 0.1}, torch.optim.AdamW),
    "sgd": ({"lr": 1e-2}, torch.optim.SGD),
    "sgd, momentum": ({"lr": 1e-2, "momentum": 0.9, "weight_decay": 0.01}, torch.optim.SGD),
}


@pytest.mark.parametrize("kind", KINDS)
def test_optimizers_are_torchs_for_twenty_steps(kind):
    options, reference_class = KINDS[kind]
    ours, theirs = values_of(0).detach(), values_of(0)
    optimizer = build(OptimizerSpec(name=kind.partition(",")[0], **options), ours)
    reference = reference_class([theirs], **options)
    start = ours.clone()
    for gradient in gradients(20):
        theirs.grad.copy_(gradient)
        optimizer.step(ours, gradient)
        reference.step()
        torch.testing.assert_close(ours, theirs.detach(), rtol=0, atol=1e-12)
    assert (ours - start).abs().max() > options["lr"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_slice_is_optimized_as_it_would_be_in_the_whole(kind):
    spec = OptimizerSpec(name=kind.partition(",")[0], **KINDS[kind][0])
    whole, parts = values_of(0).detach(), values_of(0).detach()
    cuts = [slice(0, 12), slice(12, 31)]
    of_whole, of_parts = build(spec, whole), [build(spec, parts[cut]) for cut in cuts]
    for gradient in gradients(10):
        of_whole.step(whole, gradient)
        for cut, optimizer in zip(cuts, of_parts, strict=True):
            optimizer.step(parts[cut], gradient[cut])
    assert torch.equal(whole, parts)


@pytest.mark.parametrize("kind", KINDS)
def test_state_goes_on_where_it_was(kind):
    spec = OptimizerSpec(name=kind.partition(",")[0], **KINDS[kind][0])
    values = values_of(0).detach()
    optimizer = build(spec, values)
    for gradient in gradients(5):
        optimizer.step(values, gradient)
    copied, other = values.clone(), build(spec, values)
    load_state(other, {name: x.clone() for name, x in optimizer.state().items()})
    for gradient in gradients(3):
        optimizer.step(values, gradient)
        other.step(copied, gradient)
    assert torch.equal(values, copied)


def test_loaded_state_is_a_copy():
    values = values_of(0).detach()
    adam = build(OptimizerSpec(lr=0.1), values)
    state = {name: torch.ones_like(x) for name, x in adam.state().items()}
    load_state(adam, state)
    adam.step(values, torch.ones_like(values))
    assert all((x == 1).all() for x in state.values())
    assert adam.state()["count"].item() == 2


@pytest.mark.parametrize("kind", KINDS)
def test_an_annealed_step_is_torchs_at_the_lower_learning_rate(kind):
    options, reference_class = KINDS[kind]
    ours, theirs = values_of(0).detach(), values_of(0)
    optimizer = build(OptimizerSpec(name=kind.partition(",")[0], **options), ours)
    reference = reference_class([theirs], **options)
    for t, gradient in enumerate(gradients(10), start=1):
        theirs.grad.copy_(gradient)
        reference.param_groups[0]["lr"] = options["lr"] * t**-0.65
        reference.step()
        optimizer.step(ours, gradient, t**-0.65)
        torch.testing.assert_close(ours, theirs.detach(), rtol=0, atol=1e-12)
