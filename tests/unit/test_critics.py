"""Critics see what their paradigm lets them see, and nothing else."""

from itertools import count

import numpy as np
import pytest
import torch
from rigs import drawn

from marl_hpc.critics import ActionCritic, Critic
from marl_hpc.types import ActionSpace, GroupSpec, InterfaceSpec

T, B, S = 7, 3, 5
CHOICE = ActionSpace(kind="discrete", n=3)
GROUPS = (
    GroupSpec(name="a", agents=("a0", "a1"), observation_shape=(4,), action_space=CHOICE),
    GroupSpec(name="b", agents=("b0",), observation_shape=(2, 3), action_space=CHOICE, action_mask=True),
)
AGENTS = [("a", 0), ("a", 1), ("b", 0)]
SEES = {"own": ("own", False), "state": ("state", False), "shared": ("state", True), "joint": ("joint", False)}
kinds = pytest.mark.parametrize("kind", SEES)
memories = pytest.mark.parametrize("units", [0, 6])


def critic_of(kind, units=0, agent_id=True):
    sees, shared = SEES[kind]
    interface = InterfaceSpec(
        name="team", paradigm="x", groups=GROUPS, critic_sees=sees, joint_policy=kind == "joint", state_size=S * (sees == "state")
    )
    network = {"hidden": [8, 8], "activation": "tanh", "agent_id": agent_id, "gru": units}
    critic = Critic(interface, network, count(), shared).double()
    with torch.no_grad():
        for parameter in critic.parameters():
            parameter *= 3
    return critic


def batch_of(seed=0):
    random = np.random.default_rng(seed)

    def numbers(*shape):
        return torch.from_numpy(random.normal(size=shape))

    batch = {"first": torch.from_numpy(random.random((T, B)) < 0.3), "state": numbers(T, B, S), "next_state": numbers(T, B, S)}
    for g in GROUPS:
        lead = (T, B, len(g.agents))
        batch |= {f"{g.name}/{name}": numbers(*lead, *g.observation_shape) for name in ("observation", "next_observation")}
        batch[f"{g.name}/active"] = torch.ones(lead, dtype=torch.bool)
    return batch


def changed(batch, name, agent=None, step=slice(None)):
    other = {**batch, name: batch[name].clone()}
    if agent is None:
        other[name][step] += 1
    else:
        other[name][step, :, agent] += 1
    return other


def moved(critic, one, other):
    """Which agents' values differ at any place, [N]."""
    return (critic.unroll(one, None)[0] != critic.unroll(other, None)[0]).flatten(0, 1).any(0).tolist()


@kinds
@memories
def test_values_have_one_number_for_each_agent_or_one_for_the_team(kind, units):
    critic, batch = critic_of(kind, units), batch_of()
    values, memory = critic.unroll(batch, None)
    agents = 1 if kind == "joint" else 3
    assert values.shape == (T, B, agents)
    assert memory.shape == (T, B, agents, units)
    assert critic.after(batch, memory).shape == (T, B, agents)
    ended = {name: x[batch["first"]] for name, x in batch.items()}
    after = critic.after(ended, memory[batch["first"]])
    torch.testing.assert_close(after, critic.after(batch, memory)[batch["first"]], rtol=0, atol=1e-12)


@kinds
@memories
def test_critics_see_what_they_may_and_nothing_else(kind, units):
    critic, batch = critic_of(kind, units), batch_of()
    everyone, nobody = [True] * (1 if kind == "joint" else 3), [False] * (1 if kind == "joint" else 3)
    assert moved(critic, batch, changed(batch, "state")) == (everyone if kind in ("state", "shared") else nobody)
    for place, (group, i) in enumerate(AGENTS):
        seen = moved(critic, batch, changed(batch, f"{group}/observation", i))
        own = [p == place for p in range(3)]
        assert seen == {"own": own, "state": own, "shared": nobody, "joint": [True]}[kind]
    for name in ("next_state", "a/next_observation", "b/next_observation"):
        assert moved(critic, batch, changed(batch, name)) == nobody
    without = {name: x for name, x in batch.items() if kind in ("state", "shared") or "state" not in name}
    assert torch.equal(critic.unroll(without, None)[0], critic.unroll(batch, None)[0])


@kinds
@memories
def test_values_of_what_actions_led_to_see_the_next_observations_and_state(kind, units):
    critic, batch = critic_of(kind, units), batch_of()
    memory = critic.unroll(batch, None)[1]
    before = critic.after(batch, memory)

    def differs(other):
        return (critic.after(other, memory) != before).flatten(0, 1).any(0).tolist()

    everyone, nobody = [True] * before.shape[-1], [False] * before.shape[-1]
    assert differs(changed(batch, "next_state")) == (everyone if kind in ("state", "shared") else nobody)
    for place, (group, i) in enumerate(AGENTS):
        own = [p == place for p in range(3)]
        expected = {"own": own, "state": own, "shared": nobody, "joint": [True]}[kind]
        assert differs(changed(batch, f"{group}/next_observation", i)) == expected
    for name in ("state", "a/observation", "b/observation"):
        assert differs(changed(batch, name)) == nobody


@kinds
@memories
def test_value_after_a_step_is_the_value_at_the_next_one(kind, units):
    critic, batch = critic_of(kind, units), batch_of()
    batch["first"][1:] = False
    for name in ("state", "a/observation", "b/observation"):
        other = "next_state" if name == "state" else name.replace("/", "/next_")
        batch[other] = torch.cat([batch[name][1:], batch[other][-1:]])
    values, memory = critic.unroll(batch, None)
    torch.testing.assert_close(critic.after(batch, memory)[:-1], values[1:], rtol=0, atol=1e-12)


@kinds
def test_memory_looks_back_to_the_episodes_start_and_never_ahead(kind):
    critic, batch = critic_of(kind, 6), batch_of()
    batch["first"][:] = False
    batch["first"][4] = True
    others = [changed(batch, name, step=2) for name in ("state", "a/observation", "b/observation")]
    other = {**others[0], "a/observation": others[1]["a/observation"], "b/observation": others[2]["b/observation"]}
    values, later = critic.unroll(batch, None)[0], critic.unroll(other, None)[0]
    same = (values == later).flatten(1).all(1).tolist()
    assert same == [True, True, False, False, True, True, True]


@pytest.mark.parametrize(("kind", "agent_id"), [("shared", True), ("shared", False), ("own", True)])
def test_the_shared_critic_tells_agents_apart_by_their_place(kind, agent_id):
    critic, batch = critic_of(kind, agent_id=agent_id), batch_of()
    batch["a/observation"][:, :, 1] = batch["a/observation"][:, :, 0]
    values = critic.unroll(batch, None)[0]
    assert torch.allclose(values[..., 0], values[..., 1], rtol=1e-12) != agent_id  # rows of one product may differ in the last bit


def test_a_separate_critic_has_a_network_for_each_group_and_a_shared_one_has_one():
    assert [len(critic_of(kind).networks) for kind in SEES] == [2, 2, 1, 1]
    first, second = critic_of("own").networks
    assert next(first.parameters()).shape == (8, 4 + 2)  # its observation and which of two agents it is
    assert next(second.parameters()).shape == (8, 6)
    assert next(critic_of("state").networks[1].parameters()).shape == (8, 6 + S)
    assert next(critic_of("shared").networks[0].parameters()).shape == (8, S + 3)
    assert next(critic_of("joint").networks[0].parameters()).shape == (8, 2 * 4 + 6)


# critics of actions


@pytest.mark.parametrize("units", [0, 6])
@pytest.mark.parametrize("kind", ["own", "state", "shared"])
def test_values_of_actions_see_the_others_that_act_and_their_own_only_where_it_is_no_choice(kind, units):
    interface = drawn.interface_of("discrete", "box", paradigm="independent" if kind == "own" else "ctde")
    critic = ActionCritic(
        interface, {"hidden": [8], "activation": "tanh", "agent_id": True, "gru": units}, count(), kind == "shared"
    )
    critic.double()
    batch = {name: x[:, 0] for name, x in drawn.batch_of(interface).items()}
    random = torch.Generator().manual_seed(0)
    actions = {"a": torch.rand(1, 6, 2, 4, generator=random), "b": torch.rand(1, 6, 1, 2, generator=random)}
    actions = {name: x.double() for name, x in actions.items()}
    memory = None if not units else torch.rand(1, 6, 3, units, generator=random).double()

    def values(acted, own=None, prefix=""):
        q = critic(batch, acted, prefix, own=own, memory=memory)
        assert q["a"].shape == (1, 6, 2, 4)
        assert q["b"].shape == (1, 6, 1, 1)
        return torch.cat([q["a"].sum(-1), q["b"].sum(-1)], -1)

    before, team = values(actions), kind != "own"
    for place, (group, i) in enumerate([("a", 0), ("a", 1), ("b", 0)]):
        acted = {name: x.clone() for name, x in actions.items()}
        acted[group][..., i, :] += 1
        for prefix in ("", "next_"):
            seen = torch.cat([batch[f"{g}/{prefix}active"] for g in "ab"], -1)[..., place, None].expand(-1, -1, 3).clone()
            if prefix:
                seen[:, 1] = True  # cut off: it would have gone on
            seen &= torch.tensor(team)
            seen[..., place] = group == "b"
            assert torch.equal(values(acted, prefix=prefix) != values(actions, prefix=prefix), seen)
        alone = torch.zeros_like(before, dtype=torch.bool)
        alone[..., place] = group == "b"
        assert torch.equal(values(actions, own=acted) != before, alone)
