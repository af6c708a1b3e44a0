"""Zhang et al. 2018's two algorithms, one step of them written out agent by agent and sample by sample."""

import numpy as np
import pytest
import torch
from rigs.batches import batch_of

from marl_hpc import algorithms, mixing, topology
from marl_hpc.agents import NetworkedAgent
from marl_hpc.comm.exchange_plan import ExchangePlan
from marl_hpc.comm.graphs import GraphExchange
from marl_hpc.comm.transports import Nobody
from marl_hpc.config import ConfigError
from marl_hpc.types import ActionSpace, GroupSpec, InterfaceSpec

N, A, S, T, B = 3, 2, 4, 5, 3


def interface_of(mix="critic", kind="discrete", stacked=True):
    space = ActionSpace(kind="discrete", n=A) if kind == "discrete" else ActionSpace(kind="box", shape=(2,))
    group = GroupSpec(name="all", agents=("a", "b", "c"), observation_shape=(S,), action_space=space)
    return InterfaceSpec(
        name="all", paradigm="networked" if stacked else "independent", groups=(group,), stacked=stacked, mix=mix, critic_sees="state",
        state_size=S, joint_actions=N,
    )  # fmt: skip


def build(version, **options):
    options = {"name": "networked_ac", "version": version, "hidden": [6], "optimizer": "sgd", "max_grad_norm": 1e9, **options}
    kind, config = algorithms.configure(options)
    weights = mixing.metropolis_hastings(topology.star(N))
    exchange = GraphExchange(np.arange(N), [ExchangePlan(weights, np.zeros(N, int), 0)], None, Nobody())
    agent = NetworkedAgent(kind, config, interface_of(), exchange, device=torch.device("cpu"), dtype=torch.float64, seed=1)
    generator = torch.Generator().manual_seed(3)
    for block in agent.blocks:  # agents that have learned different things
        block += 0.3 * torch.randn(block.shape, generator=generator, dtype=torch.float64)
    agent.algorithm.average += torch.tensor([0.1, 0.2, 0.3])
    return agent, weights.toarray()


def batch():
    made = batch_of(interface_of(), T, B, ends=0.2)
    made["joint_action"] = made["all/action"].clone()
    return made


def network(row, x, outputs):
    """One agent's network of one hidden layer, from its row."""
    sizes = [(len(x), 6), (6,), (6, outputs), (outputs,)]
    w1, b1, w2, b2 = (part.view(size) for part, size in zip(row.split([int(np.prod(size)) for size in sizes]), sizes, strict=True))
    return torch.tanh(x @ w1 + b1) @ w2 + b2


def pair(state, actions):
    """The state and all actions as one-hots."""
    return torch.cat([state, *(torch.eye(A, dtype=torch.float64)[a] for a in actions)])


@pytest.mark.parametrize("version", [1, 2])
def test_one_step_is_the_papers(version):
    agent, weights = build(version, lr=0.01, critic_lr=0.05, average_rate=0.5)
    data, algorithm = batch(), agent.algorithm
    before = [block.clone() for block in agent.blocks]
    average = algorithm.average.clone()
    agent.learn(data, torch.arange(B), total=B, seed=0, env_steps=0)

    rows = [block.clone().requires_grad_() for block in before]
    gradients = [torch.zeros_like(block) for block in before]
    active, reward = data["all/active"], data["all/reward"]
    ended = data["all/terminated"] | data["all/truncated"]
    earned = torch.zeros(N, dtype=torch.float64)
    for i in range(N):
        samples = [
            (t, b)
            for t in range(T)
            for b in range(B)
            if active[t, b, i] and (version == 2 or (t + 1 < T and not ended[t, b].any()))
        ]
        for t, b in samples:
            state, actions, r = data["state"][t, b], data["joint_action"][t, b], reward[t, b, i]
            says = network(rows[0][i], data["all/observation"][t, b, i], A).log_softmax(-1)
            score = says[actions[i]]
            if version == 1:
                after = network(rows[1][i], pair(data["state"][t + 1, b], data["joint_action"][t + 1, b]), 1)
                q = network(rows[1][i], pair(state, actions), 1)
                error = (r - average[i] + after - q).detach()
                others = [
                    network(rows[1][i], pair(state, [c if j == i else a for j, a in enumerate(actions)]), 1) for c in range(A)
                ]
                advantage = (q - sum(p * value for p, value in zip(says.exp(), others, strict=True))).detach()
                directions = [advantage * score, error * q]
            else:
                after = network(rows[1][i], data["next_state"][t, b], 1) * ~data["all/terminated"][t, b, i]
                value, model = network(rows[1][i], state, 1), network(rows[2][i], pair(state, actions), 1)
                error = (r - average[i] + after - value).detach()
                advantage = (model - average[i] + after - value).detach()
                directions = [advantage * score, error * value, (r - model).detach() * model]
            for place, direction in enumerate(directions):
                gradients[place][i] += torch.autograd.grad(direction.sum(), rows[place])[0][i] / len(samples)
            earned[i] += r / len(samples)
    steps = [0.01, *[0.05] * (len(before) - 1)]
    expected = [block + step * gradient for block, step, gradient in zip(before, steps, gradients, strict=True)]
    expected[1:] = [torch.from_numpy(weights) @ block for block in expected[1:]]  # policies stay agents' own
    for block, wanted in zip(agent.blocks, expected, strict=True):
        torch.testing.assert_close(block, wanted)
    torch.testing.assert_close(algorithm.average, average + 0.5 * (earned - average))  # and so do average rewards


def test_step_sizes_fall_on_two_time_scales():
    agent, _ = build(2, lr_exponent=0.85, critic_lr_exponent=0.65)
    assert [agent.algorithm.annealing(part, 0, 0) for part in (0, 1)] == [1, 1]
    np.testing.assert_allclose([agent.algorithm.annealing(part, 99, 0) for part in (0, 1)], [100**-0.85, 100**-0.65])


@pytest.mark.parametrize(
    ("options", "interface", "words"),
    [
        ({"version": 3}, interface_of(), "1 or 2"),
        ({}, interface_of(mix="all"), "set topology.mix=critic"),
        ({}, interface_of(kind="box"), "use algorithm=a2c"),
        ({}, interface_of(stacked=False), "needs paradigm=networked"),
        ({"gru": 8}, interface_of(), "need no memory"),
        ({"critic_lr": 0}, interface_of(), "greater than 0"),
    ],
)
def test_what_it_cannot_do_is_said(options, interface, words):
    kind, config = algorithms.configure({"name": "networked_ac", **options})
    with pytest.raises(ConfigError, match=words):
        kind.check(config, interface, 10)
