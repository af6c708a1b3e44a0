"""Packed fragments: what goes in comes out, through the same memory."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from marl_hpc.storage.fragments import allocate, pack, row_dtype, unpack
from marl_hpc.types import ActionSpace, GroupSpec, InterfaceSpec

DISCRETE = GroupSpec(
    name="g", agents=("a", "b", "c"), observation_shape=(5,), action_space=ActionSpace(kind="discrete", n=4), action_mask=True
)
BOX = GroupSpec(name="g", agents=("a",), observation_shape=(2, 3), action_space=ActionSpace(kind="box", shape=(2, 2)))
SCALAR = GroupSpec(name="g", agents=("a", "b"), observation_shape=(), action_space=ActionSpace(kind="box", shape=()))
SEVERAL = GroupSpec(
    name="h", agents=("x", "y"), observation_shape=(2,), action_space=ActionSpace(kind="multi_discrete", nvec=(3, 2)),
    action_mask=True,
)  # fmt: skip


def interface_of(*groups, **changes):
    return replace(InterfaceSpec(name="i", paradigm="independent", groups=groups), **changes)


INTERFACES = {
    "discrete": interface_of(DISCRETE),
    "box": interface_of(BOX),
    "scalar": interface_of(SCALAR),
    "team": interface_of(BOX, SEVERAL, critic_sees="state", state_size=7),
}
both = pytest.mark.parametrize("dtype", ["float32", "float64"])
every = pytest.mark.parametrize("interface", INTERFACES.values(), ids=INTERFACES.keys())


def filled(interface, dtype, steps=4, copies=3):
    rows = allocate(interface, dtype, steps, copies)
    random, written = np.random.default_rng(0), {}
    for name in rows.dtype.names:
        shape, kind = rows[name].shape, rows[name].dtype
        written[name] = (random.normal(size=shape) * 3).astype(kind) if kind.kind != "b" else random.random(shape) < 0.5
        rows[name] = written[name]
    return rows, written


def opened(packed, interface, dtype):
    return unpack({"rows": packed}, interface, dtype)


@both
@every
def test_what_is_packed_comes_out(interface, dtype):
    rows, written = filled(interface, dtype)
    fields = opened(pack(rows), interface, dtype)
    assert sorted(fields) == sorted(written)
    for name, values in written.items():
        group, _, own = name.partition("/")
        agents = next((g.agents for g in interface.groups if own and g.name == group), ())
        assert fields[name].shape[: 3 if own else 2] == ((4, 3, len(agents)) if own else (4, 3))
        assert fields[name].numpy().dtype == values.dtype
        np.testing.assert_array_equal(fields[name].numpy(), values)


@both
@every
def test_fields_have_the_groups_shapes(interface, dtype):
    fields = opened(pack(allocate(interface, dtype, 2, 3)), interface, dtype)
    assert fields["first"].shape == (2, 3)
    for group in interface.groups:
        own = {name.partition("/")[2]: x for name, x in fields.items() if name.startswith(f"{group.name}/")}
        lead, space = (2, 3, len(group.agents)), group.action_space
        assert own["observation"].shape == own["next_observation"].shape == (*lead, *group.observation_shape)
        shape = {"discrete": (), "multi_discrete": (len(space.nvec),), "box": (int(np.prod(space.shape)),)}[space.kind]
        assert own["action"].shape == (*lead, *shape)
        assert own["action"].dtype == (getattr(torch, dtype) if space.kind == "box" else torch.int64)
        assert {name for name in own if name.endswith("action_mask")} == (
            {"action_mask", "next_action_mask"} if group.action_mask else set()
        )
        assert own["active"].shape == own["next_active"].shape == own["reward"].shape == lead
    assert all(not x.any() for x in fields.values())


@both
def test_the_state_stands_there_once_and_only_where_a_critic_sees_it(dtype):
    team = INTERFACES["team"]
    fields = opened(pack(allocate(team, dtype, 2, 3)), team, dtype)
    assert fields["state"].shape == fields["next_state"].shape == (2, 3, 7)
    for name in ("discrete", "box"):
        names = opened(pack(allocate(INTERFACES[name], dtype, 2, 3)), INTERFACES[name], dtype)
        assert not {"state", "next_state"} & set(names)


@both
def test_the_joint_action_stands_there_whole_where_a_critic_sees_it_also_for_a_part_of_the_agents(dtype):
    part = replace(INTERFACES["discrete"], joint_agents=("z", "a", "b", "c", "y"))
    assert opened(pack(allocate(part, dtype, 2, 3)), part, dtype)["joint_action"].shape == (2, 3, 5)
    assert "joint_action" not in opened(pack(allocate(INTERFACES["discrete"], dtype, 2, 3)), INTERFACES["discrete"], dtype)


@every
def test_packing_and_unpacking_copy_nothing(interface):
    rows, _ = filled(interface, "float32")
    packed = pack(rows)
    fields = opened(packed, interface, "float32")
    assert packed.numpy().base is not None
    rows["g/reward"][2, 1] = 42.0
    assert (fields["g/reward"][2, 1] == 42.0).all()
    fields["g/observation"][0, 0] = -1.0
    assert (rows["g/observation"][0, 0] == -1.0).all()
    assert all(x.untyped_storage().nbytes() > 0 for x in fields.values())
    start, end = packed.data_ptr(), packed.data_ptr() + packed.numel()
    assert all(start <= x.data_ptr() < end for x in fields.values())


@both
def test_some_columns_of_a_fragment_unpack_to_those_columns(dtype):
    interface = INTERFACES["discrete"]
    rows, written = filled(interface, dtype, copies=5)
    part = pack(rows)[:, 1:3]
    for fields in (opened(part, interface, dtype), opened(part.contiguous(), interface, dtype)):
        for name, values in written.items():
            np.testing.assert_array_equal(fields[name].numpy(), values[:, 1:3])


def test_fragment_without_copies_unpacks_to_empty_fields():
    interface = INTERFACES["discrete"]
    rows, _ = filled(interface, "float32")
    fields = opened(pack(rows)[:, 3:], interface, "float32")
    assert fields["g/observation"].shape == (4, 0, 3, 5)


def test_memories_come_along_as_they_are():
    interface = INTERFACES["box"]
    rows, _ = filled(interface, "float32")
    memory = torch.randn(2, 3, 1, 8)
    fields = unpack({"rows": pack(rows), "g/memory": memory}, interface, "float32")
    assert fields["g/memory"] is memory
    assert "rows" not in fields


def test_rows_are_aligned_for_torch():
    for interface in INTERFACES.values():
        for dtype in ("float32", "float64"):
            row = row_dtype(interface, dtype)
            for name in row.names:
                kind, offset = row.fields[name][:2]
                assert offset % kind.base.itemsize == 0
                assert row.itemsize % kind.base.itemsize == 0


def test_rows_of_another_schema_are_refused():
    interface, other = INTERFACES["discrete"], INTERFACES["box"]
    packed = pack(allocate(interface, "float32", 2, 2))
    size, expected = packed.shape[-1], row_dtype(other, "float32").itemsize
    with pytest.raises(ValueError, match=rf"rows of {size} bytes for interface 'i', whose schema has {expected}"):
        opened(packed, other, "float32")
    with pytest.raises(ValueError, match="schema"):
        opened(packed, interface, "float64")


def test_packed_rows_are_bytes_that_torch_can_send():
    packed = pack(filled(INTERFACES["box"], "float32")[0])
    assert packed.dtype == torch.uint8
    assert packed.is_contiguous()
