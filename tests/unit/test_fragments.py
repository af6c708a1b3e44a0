"""Packed fragments: what goes in comes out, through the same memory."""

import numpy as np
import pytest
import torch

from marl_hpc.storage.fragments import allocate, pack, row_dtype, unpack
from marl_hpc.types import ActionSpace, GroupSpec

GROUPS = {
    "discrete": GroupSpec(
        name="g", agents=("a", "b", "c"), observation_shape=(5,), action_space=ActionSpace(kind="discrete", n=4), action_mask=True
    ),
    "box": GroupSpec(name="g", agents=("a",), observation_shape=(2, 3), action_space=ActionSpace(kind="box", shape=(2, 2))),
    "scalar": GroupSpec(name="g", agents=("a", "b"), observation_shape=(), action_space=ActionSpace(kind="box", shape=())),
}
both = pytest.mark.parametrize("dtype", ["float32", "float64"])
every = pytest.mark.parametrize("group", GROUPS.values(), ids=GROUPS.keys())


def filled(group, dtype, steps=4, copies=3):
    rows = allocate(group, dtype, steps, copies)
    random, written = np.random.default_rng(0), {}
    for name in rows.dtype.names:
        shape, kind = rows[name].shape, rows[name].dtype
        written[name] = (random.normal(size=shape) * 3).astype(kind) if kind.kind != "b" else random.random(shape) < 0.5
        rows[name] = written[name]
    return rows, written


@both
@every
def test_what_is_packed_comes_out(group, dtype):
    rows, written = filled(group, dtype)
    fields = unpack(pack(rows), group, dtype)
    assert sorted(fields) == sorted(written)
    for name, values in written.items():
        assert fields[name].shape[:3] == (4, 3, len(group.agents))
        assert fields[name].numpy().dtype == values.dtype
        np.testing.assert_array_equal(fields[name].numpy(), values)


@both
@every
def test_fields_have_the_groups_shapes(group, dtype):
    fields = unpack(pack(allocate(group, dtype, 2, 3)), group, dtype)
    lead, space = (2, 3, len(group.agents)), group.action_space
    assert fields["observation"].shape == fields["next_observation"].shape == (*lead, *group.observation_shape)
    assert fields["action"].shape == (lead if space.kind == "discrete" else (*lead, int(np.prod(space.shape))))
    assert ("action_mask" in fields) == group.action_mask
    assert all(not x.any() for x in fields.values())


@every
def test_packing_and_unpacking_copy_nothing(group):
    rows, _ = filled(group, "float32")
    packed = pack(rows)
    fields = unpack(packed, group, "float32")
    assert packed.numpy().base is not None
    rows["reward"][2, 1] = 42.0
    assert (fields["reward"][2, 1] == 42.0).all()
    fields["observation"][0, 0] = -1.0
    assert (rows["observation"][0, 0] == -1.0).all()
    assert all(x.untyped_storage().nbytes() > 0 for x in fields.values())
    start, end = packed.data_ptr(), packed.data_ptr() + packed.numel()
    assert all(start <= x.data_ptr() < end for x in fields.values())


@both
def test_some_columns_of_a_fragment_unpack_to_those_columns(dtype):
    group = GROUPS["discrete"]
    rows, written = filled(group, dtype, copies=5)
    part = pack(rows)[:, 1:3]
    for fields in (unpack(part, group, dtype), unpack(part.contiguous(), group, dtype)):
        for name, values in written.items():
            np.testing.assert_array_equal(fields[name].numpy(), values[:, 1:3])


def test_fragment_without_copies_unpacks_to_empty_fields():
    group = GROUPS["discrete"]
    rows, _ = filled(group, "float32")
    fields = unpack(pack(rows)[:, 3:], group, "float32")
    assert fields["observation"].shape == (4, 0, 3, 5)


def test_rows_are_aligned_for_torch():
    for group in GROUPS.values():
        for dtype in ("float32", "float64"):
            row = row_dtype(group, dtype)
            for name in row.names:
                kind, offset = row.fields[name][:2]
                assert offset % kind.base.itemsize == 0
                assert row.itemsize % kind.base.itemsize == 0


def test_rows_of_another_schema_are_refused():
    group, other = GROUPS["discrete"], GROUPS["box"]
    packed = pack(allocate(group, "float32", 2, 2))
    size, expected = packed.shape[-1], row_dtype(other, "float32").itemsize
    with pytest.raises(ValueError, match=rf"rows of {size} bytes for group 'g', whose schema has {expected}"):
        unpack(packed, other, "float32")
    with pytest.raises(ValueError, match="schema"):
        unpack(packed, group, "float64")


def test_packed_rows_are_bytes_that_torch_can_send():
    packed = pack(filled(GROUPS["box"], "float32")[0])
    assert packed.dtype == torch.uint8
    assert packed.is_contiguous()
