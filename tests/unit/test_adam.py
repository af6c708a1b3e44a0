"""Adam against torch.optim.Adam."""

import pytest
import torch

from marl_hpc.agents.adam import Adam


def values_of(seed, dtype=torch.float64):
    values = torch.nn.Parameter(torch.randn(31, dtype=dtype, generator=torch.Generator().manual_seed(seed)))
    values.grad = torch.zeros_like(values)
    return values


def gradients(steps):
    random = torch.Generator().manual_seed(9)
    return [torch.randn(31, dtype=torch.float64, generator=random) * 10.0 ** (i % 4 - 2) for i in range(steps)]


@pytest.mark.parametrize(("lr", "eps", "betas"), [(1e-2, 1e-5, (0.9, 0.999)), (0.3, 1e-8, (0.5, 0.9))])
def test_adam_is_torchs_for_twenty_steps(lr, eps, betas):
    ours, theirs = values_of(0), values_of(0)
    adam, reference = Adam(ours, lr=lr, eps=eps, betas=betas), torch.optim.Adam([theirs], lr=lr, eps=eps, betas=betas)
    start = ours.detach().clone()
    for gradient in gradients(20):
        ours.grad.copy_(gradient)
        theirs.grad.copy_(gradient)
        adam.step()
        reference.step()
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    assert (ours - start).abs().max() > lr


def test_state_goes_on_where_it_was():
    values, copied = values_of(0), values_of(1)
    adam = Adam(values, lr=0.1, eps=1e-5)
    for gradient in gradients(5):
        values.grad.copy_(gradient)
        adam.step()
    other = Adam(copied, lr=0.1, eps=1e-5)
    other.load_state({name: x.clone() for name, x in adam.state().items()})
    copied.data.copy_(values.data)
    for gradient in gradients(3):
        for x, optimizer in ((values, adam), (copied, other)):
            x.grad.copy_(gradient)
            optimizer.step()
    assert torch.equal(values, copied)
    assert other.count.item() == 8


def test_loaded_state_is_a_copy():
    values = values_of(0)
    adam = Adam(values, lr=0.1, eps=1e-5)
    state = {name: torch.ones_like(x) for name, x in adam.state().items()}
    adam.load_state(state)
    values.grad.fill_(1.0)
    adam.step()
    assert all((x == 1).all() for x in state.values())
    assert adam.count.item() == 2
