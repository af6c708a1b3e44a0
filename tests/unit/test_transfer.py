"""Versions sent as they are, rounded, or as differences: what readers end up with."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from marl_hpc.storage.transfer import Receiver, Sender


def versions(count, size=50, step=1e-3, seed=0):
    random = torch.Generator().manual_seed(seed)
    values = torch.randn(size, generator=random)
    found = []
    for _ in range(count):
        found.append(values)
        values = values + step * torch.randn(size, generator=random)
    return found


def size_bytes(sent):
    return sum(x.nbytes for x in sent.values() if isinstance(x, torch.Tensor)) + sum(x.nbytes for x in sent.get("deltas", []))


def test_differences_dont_drift_and_take_half_the_bytes():
    sender, receiver = Sender("delta"), Receiver(torch.float32)
    exact = versions(2000)
    for version, values in enumerate(exact):
        sent = sender.send(version, values, receiver.have)
        got = receiver.receive(version, sent)
        if version:
            assert size_bytes(sent) == values.nbytes // 2
            assert (got - values).abs().max() < 1e-4  # a rounding of one step (1e-3 · 2^-8), not the sum of two thousand
    assert (got - exact[-1]).abs().max() > 0
    assert (got - exact[-1]).abs().max() < (exact[-1].to(torch.bfloat16).float() - exact[-1]).abs().max() / 50


def test_rounded_values_take_half_the_bytes_and_full_ones_are_exact():
    (values,) = versions(1)
    sent = Sender("bfloat16").send(3, values, -1)
    assert size_bytes(sent) == values.nbytes // 2
    got = Receiver(torch.float32).receive(3, sent)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, values, rtol=2**-8, atol=0)
    assert Receiver(torch.float32).receive(3, Sender("full").send(3, values, 2)) is values


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), min_size=1, max_size=40))
def test_readers_of_a_version_have_the_same_bits_whenever_they_read_last(reads):
    """Three readers, each reading now and then; between reads some versions are made that nobody reads."""
    sender, exact = Sender("delta"), versions(200)
    receivers = [Receiver(torch.float32) for _ in range(3)]
    version, had = 0, {}
    for reader, skipped in reads:
        version += skipped
        got = receivers[reader].receive(version, sender.send(version, exact[version], receivers[reader].have))
        assert torch.equal(had.setdefault(version, got), got)
        assert (got - exact[version]).abs().max() < 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_keep_their_type(dtype):
    sender, receiver = Sender("delta"), Receiver(dtype)
    for version in range(3):
        got = receiver.receive(version, sender.send(version, torch.full((3,), float(version), dtype=dtype), receiver.have))
        assert got.dtype == dtype
        assert got.tolist() == [version] * 3
