"""Memories: what workers act with, step by step, is what learners compute over sequences and over chunks of them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from marl_hpc.actors import build_policy
from marl_hpc.algorithms.ppo import PPO, PPOConfig
from marl_hpc.distributions import draw_noise
from marl_hpc.networks import AgentNetwork
from marl_hpc.types import ActionSpace, GroupSpec, InterfaceSpec

SPACES = {
    "discrete": ActionSpace(kind="discrete", n=4),
    "several": ActionSpace(kind="multi_discrete", nvec=(3, 2)),
    "box": ActionSpace(kind="box", shape=(2,)),
}
NETWORK = {"hidden": [8], "activation": "tanh", "agent_id": True}
T, B = 12, 3


def group_of(space="discrete", name="g", agents=2, mask=False, size=3):
    return GroupSpec(
        name=name, agents=tuple(f"{name}{i}" for i in range(agents)), observation_shape=(size,), action_space=SPACES[space],
        action_mask=mask,
    )  # fmt: skip


def larger(module, factor=4.0):
    """A policy that has been trained prefers something, and remembers."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter *= factor
    return module


def sequence_of(groups, seed=0, dtype=torch.float64):
    """(inputs without actions, first): what B copies see over T steps; episodes start in the middle, agents don't always act."""
    random = np.random.default_rng(seed)
    first = random.random((T, B)) < 0.2
    first[0, 0], first[0, 1], first[5, 2] = True, False, True
    inputs = {}
    for g in groups:
        lead, space = (T, B, len(g.agents)), g.action_space
        inputs[g.name] = {
            "observation": torch.from_numpy(random.normal(size=(*lead, *g.observation_shape))).to(dtype),
            "active": torch.from_numpy(random.random(lead) < 0.7),
        }
        if g.action_mask:
            mask, start = random.random((*lead, space.size)) < 0.5, 0
            for n in space.choices:
                mask[..., start + 1] = True
                start += n
            inputs[g.name]["action_mask"] = torch.from_numpy(mask)
    return inputs, torch.from_numpy(first)


def act_out(policy, inputs, first, seed=1, memory=None):
    """Act step by step as a worker does: (inputs with the actions, log-probabilities by group, memories before each step)."""
    random, dtype = np.random.default_rng(seed), next(policy.parameters()).dtype
    memory = torch.zeros(B, *policy.memory_shape, dtype=dtype) if memory is None else memory
    actions, log_probs, memories = [], [], []
    with torch.no_grad():
        for t in range(T):
            memory = memory.masked_fill(first[t, :, None, None], 0)
            memories.append(memory)
            seen = {name: {key: x[t] for key, x in fields.items()} for name, fields in inputs.items()}
            noise = {
                g.name: torch.from_numpy(draw_noise(g.action_space, random, (B, len(g.agents)))).to(dtype) for g in policy.groups
            }
            action, log_prob, memory = policy.act(seen, memory, noise)
            actions.append(action)
            log_probs.append(log_prob)
    taken = {name: {**fields, "action": torch.stack([action[name] for action in actions])} for name, fields in inputs.items()}
    return taken, {name: torch.stack([x[name] for x in log_probs]) for name in inputs}, torch.stack([*memories, memory])


def teams():
    """(name, groups, network) of every kind of policy."""
    for units in (0, 6):
        for space in SPACES:
            for mask in (False, True) if space != "box" else (False,):
                yield f"actor {space} mask={mask} gru={units}", [group_of(space, mask=mask)], {"gru": units}
        mixed = [group_of("discrete", "a", mask=True), group_of("box", "b", 1, size=2), group_of("several", "c", 2, size=4)]
        for autoregressive in (False, True):
            network = {"gru": units, "joint": True, "autoregressive": autoregressive}
            for space in SPACES:
                yield f"joint {space} gru={units} autoregressive={autoregressive}", [group_of(space, mask=space != "box")], network
            yield f"joint of three groups gru={units} autoregressive={autoregressive}", mixed, network


every = pytest.mark.parametrize(("groups", "network"), [case[1:] for case in teams()], ids=[case[0] for case in teams()])


@every
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_acting_step_by_step_has_the_log_probabilities_of_the_sequence(groups, network, dtype, bound):
    policy = larger(build_policy(groups, {**NETWORK, **network}, 0)).to(dtype)
    inputs, first = sequence_of(groups, dtype=dtype)
    start = torch.randn(B, *policy.memory_shape, dtype=dtype, generator=torch.Generator().manual_seed(3))
    inputs, log_probs, _ = act_out(policy, inputs, first, memory=start)
    parameters = policy.parameters_of(inputs, start, first)
    for g in groups:
        again = policy.distributions[g.name].log_prob(parameters[g.name], inputs[g.name]["action"])
        acted = inputs[g.name]["active"]
        assert again.shape == log_probs[g.name].shape == (T, B, len(g.agents))
        assert (again - log_probs[g.name])[acted].abs().max() <= bound
        if g.action_mask:
            one_hot = policy.distributions[g.name].one_hot(inputs[g.name]["action"], torch.float64) > 0
            assert not (one_hot & ~inputs[g.name]["action_mask"]).any()


@every
def test_chunks_with_their_memories_give_what_the_whole_sequence_gives(groups, network):
    policy = larger(build_policy(groups, {**NETWORK, **network}, 0)).double()
    inputs, first = sequence_of(groups)
    inputs, _, memories = act_out(policy, inputs, first)
    whole = policy.parameters_of(inputs, memories[0], first)
    for length in (1, 4, 6):
        for start in range(0, T, length):
            span = slice(start, start + length)
            chunk = {name: {key: x[span] for key, x in fields.items()} for name, fields in inputs.items()}
            parts = policy.parameters_of(chunk, memories[start], first[span])
            for g in groups:
                acted = inputs[g.name]["active"][span]
                torch.testing.assert_close(parts[g.name][acted], whole[g.name][span][acted], rtol=0, atol=1e-12)


@pytest.mark.parametrize("mask", [False, True])
def test_network_with_a_memory_is_torchs_gru_between_the_starts(mask):
    """An oracle of its own: torch.nn.GRU over each stretch of steps without a start, for each agent alone."""
    network = larger(AgentNetwork(group_of(), 4, {**NETWORK, "gru": 5, "agent_id": False}, 1.0, 0), 2.0).double()
    gru = torch.nn.GRU(8, 5).double()
    gru.load_state_dict({f"{name}_l0": x for name, x in network.cell.state_dict().items()})
    inputs, first = sequence_of([group_of()])
    observation, active = inputs["g"]["observation"], inputs["g"]["active"]
    active = active if mask else torch.ones_like(active)
    start = torch.randn(B, 2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    outputs, memories = network.unroll(observation, start, first, active)
    for b in range(B):
        for n in range(2):
            memory = start[b, n].reshape(1, 1, 5)
            for t in range(T):
                if first[t, b]:
                    memory = torch.zeros_like(memory)
                if active[t, b, n]:
                    memory = gru(network.body(observation[t, b, n]).reshape(1, 1, 8), memory)[1]
                torch.testing.assert_close(memories[t, b, n], memory.flatten(), rtol=0, atol=1e-12)
                torch.testing.assert_close(outputs[t, b, n], network.head(memory).flatten(), rtol=0, atol=1e-12)


def test_memory_of_an_agent_that_does_not_act_stays_as_it_is():
    policy = larger(build_policy([group_of()], {**NETWORK, "gru": 6}, 0)).double()
    inputs, first = sequence_of([group_of()])
    active = inputs["g"]["active"]
    memories = act_out(policy, inputs, first)[2]
    after = policy.network.unroll(inputs["g"]["observation"], memories[0], first, active)[1]
    waits = 0
    for t in range(T):
        idle = ~active[t]
        waits += int(idle.sum())
        assert torch.equal(after[t][~idle] == memories[t][~idle], torch.zeros_like(after[t][~idle], dtype=torch.bool))
        assert torch.equal(after[t][idle], memories[t][idle])
        if t + 1 < T:
            going = ~first[t + 1]
            assert torch.equal(memories[t + 1][going], after[t][going])
            assert (memories[t + 1][~going] == 0).all()
    assert waits > 5


def test_what_an_agent_saw_while_it_waited_changes_nothing():
    policy = larger(build_policy([group_of()], {**NETWORK, "gru": 6}, 0)).double()
    inputs, first = sequence_of([group_of()])
    inputs, _, memories = act_out(policy, inputs, first)
    active = inputs["g"]["active"]
    other = {"g": {**inputs["g"], "observation": torch.where(active.unsqueeze(-1), inputs["g"]["observation"], 1e3)}}
    one, two = (policy.parameters_of(x, memories[0], first)["g"][active] for x in (inputs, other))
    assert torch.equal(one, two)


# the learner's side: chunks as minibatches cut them


class Alone:
    size, index = 1, 0

    def sum_(self, tensor):
        pass


INTERFACES = {
    "independent": InterfaceSpec(name="g", paradigm="independent", groups=(group_of(mask=True),)),
    "ctde": InterfaceSpec(
        name="team", paradigm="ctde", groups=(group_of("discrete", "a"), group_of("box", "b", 1)), team_reward="mean",
        critic_sees="state", state_size=5,
    ),
    "centralized": InterfaceSpec(
        name="team", paradigm="centralized", groups=(group_of("discrete", "a", mask=True), group_of("box", "b", 1)),
        team_reward="mean", critic_sees="joint", joint_policy=True,
    ),
}  # fmt: skip


def batch_of(ppo, interface, chunk, seed=0):
    """A batch as workers record it, with memories at the start of each chunk."""
    random, groups = np.random.default_rng(seed), interface.groups
    inputs, first = sequence_of(groups, seed)
    batch = {"first": first}
    if interface.state_size:
        batch |= {name: torch.from_numpy(random.normal(size=(T, B, 5))) for name in ("state", "next_state")}
    for name, policy in ppo.policies.items():
        own = {g.name: inputs[g.name] for g in policy.groups}
        taken, log_probs, memories = act_out(policy, own, first)
        batch[f"{name}/memory"] = memories[:T:chunk]
        for g in policy.groups:
            lead = (T, B, len(g.agents))
            fields = {**taken[g.name], "log_prob": log_probs[g.name], "reward": torch.from_numpy(random.normal(size=lead))}
            fields["next_observation"] = torch.from_numpy(random.normal(size=(*lead, *g.observation_shape)))
            ended = torch.cat([first[1:], torch.zeros(1, B, dtype=torch.bool)])[..., None].expand(lead)
            fields |= {"terminated": ended, "truncated": torch.zeros_like(ended)}
            fields["next_active"] = torch.cat([fields["active"][1:], fields["active"][-1:]]) & ~ended
            batch |= {f"{g.name}/{field}": x for field, x in fields.items()}
    return batch


@pytest.mark.parametrize("critic", ["separate", "shared"])
@pytest.mark.parametrize("interface", INTERFACES.values(), ids=INTERFACES)
def test_minibatches_of_chunks_start_from_the_memories_of_the_sequence(interface, critic):
    if critic == "shared" and interface.critic_sees != "state":
        critic = "separate"
    config = PPOConfig(hidden=[8], gru=6, chunk=4, critic=critic, epochs=1, minibatches=2, autoregressive=interface.joint_policy)
    ppo = PPO(config, interface, Alone(), device="cpu", dtype=torch.float64, seed=0)
    larger(ppo.critic)
    for policy in ppo.policies.values():
        larger(policy)
    for seed in (0, 1):  # the second batch goes on from the critic's memory after the first
        remembered = ppo.critic_memory
        extended = ppo.with_advantages(batch_of(ppo, interface, 4, seed))
        samples = ppo.samples(extended)
        width = 1 if interface.joint_policy else len(interface.agents)
        assert samples["known"].shape == (4, 3 * B, width)
        log_prob, _ = ppo.act(samples)
        known = samples["known"]
        assert known.any()
        assert (log_prob - samples["log_prob"])[known].abs().max() < 1e-12
        assert (log_prob - samples["proximal_log_prob"])[known].abs().max() < 1e-12
        torch.testing.assert_close(ppo.value(samples), samples["old_value"], rtol=0, atol=1e-12)
        if seed == 1:
            assert remembered.abs().max() > 0
        for minibatch in ppo.minibatches(batch_of(ppo, interface, 4, seed), torch.arange(B), B, 0, 0):
            assert minibatch["first"].shape[0] == 4
            _, sums = ppo.loss(minibatch)
            assert sums["ratio_deviation"].item() < 1e-12


def test_critics_memory_goes_on_from_batch_to_batch():
    interface = replace(INTERFACES["independent"], groups=(group_of(),))
    ppo = PPO(PPOConfig(hidden=[8], gru=6, chunk=4), interface, Alone(), device="cpu", dtype=torch.float64, seed=0)
    larger(ppo.critic)
    batch = batch_of(ppo, interface, 4)
    batch["first"][0] = True
    halves = [{name: (x[: len(x) // 2] if half == 0 else x[len(x) // 2 :]) for name, x in batch.items()} for half in (0, 1)]
    halves = [{**half, "g/memory": half["g/memory"][:1]} for half in halves]
    config = replace(ppo.config, chunk=6)
    whole = ppo.evaluate(batch)[0]
    again = PPO(config, interface, Alone(), device="cpu", dtype=torch.float64, seed=0)
    larger(again.critic)
    parts = torch.cat([again.evaluate(half)[0] for half in halves])
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-12)
