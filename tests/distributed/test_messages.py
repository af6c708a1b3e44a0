"""Agents that talk over ranks: what two or three ranks learn is what one does."""

import numpy as np
import pytest
import torch
from rigs.batches import batch_of
from rigs.ranks import together

from marl_hpc import topology
from marl_hpc.algorithms.a2c import A2C, A2CConfig
from marl_hpc.algorithms.ppo import PPO, PPOConfig
from marl_hpc.algorithms.scalable_ac import ScalableAC, ScalableACConfig
from marl_hpc.comm.collectives import Alone
from marl_hpc.comm.graphs import Messages
from marl_hpc.comm.transports import Nobody, PointToPoint
from marl_hpc.messages import KINDS
from marl_hpc.types import ActionSpace, GroupSpec, InterfaceSpec

N, T, B = 7, 12, 3
GRAPH = topology.from_edges([*[(i, i + 1) for i in range(N - 1)], (0, 3), (2, 6)])
ONE_WAY = topology.from_edges([*[(i, (i + 1) % N) for i in range(N)], (0, 3), (2, 6)], directed=True)
ALGORITHMS = {"a2c": (A2C, A2CConfig), "ppo": (PPO, PPOConfig), "scalable_ac": (ScalableAC, ScalableACConfig)}


def interface_of(agents, graph=GRAPH):
    group = GroupSpec(
        name="g", agents=tuple(f"g{i}" for i in agents), observation_shape=(3,), action_space=ActionSpace(kind="discrete", n=4),
        action_mask=True,
    )  # fmt: skip
    pairs = tuple(map(tuple, graph.edges.tolist()))
    return InterfaceSpec(name="g", paradigm="networked", groups=(group,), stacked=True, neighbors=pairs)


def learned(rank, ranks, name, kind, order, graph=GRAPH):
    """(this rank's agents, their rows' gradients over one batch, their log-probabilities)."""
    owners = np.random.default_rng(0).permutation(np.arange(N) % ranks)
    mine = np.flatnonzero(owners == rank)
    if order == "reversed":
        mine = mine[::-1]
    kind_of, config = ALGORITHMS[name]
    talking = {"gru": 5, "chunk": 4, "messages": kind} if kind in KINDS else {"kappa": int(kind)}
    options = config(hidden=[8], **talking)
    algorithm = kind_of(options, interface_of(mine, graph), Alone(), device="cpu", dtype=torch.float64, seed=0)
    with torch.no_grad():  # agents' rows apart from each other, the same on any rank
        for module in (algorithm.policies["g"], algorithm.critic):
            (rows,) = module.parameters()
            apart = torch.randn(N, rows.shape[1], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
            rows += 0.3 * apart[mine.copy()]
    adjacency = topology.within(graph, algorithm.hops).adjacency
    algorithm.connect(Messages(adjacency, owners, rank, PointToPoint() if ranks > 1 else Nobody(), mine))
    batch = {
        name: x[:, :, mine.copy()] if name.startswith("g/") else x for name, x in batch_of(interface_of(range(N)), T, B).items()
    }
    if algorithm.config.gru:
        batch["g/memory"] = torch.zeros(T // 4, B, *algorithm.policies["g"].memory_shape, dtype=torch.float64)
    with torch.no_grad():
        log_probs = algorithm.act(algorithm.at_start(batch))[0]
    for minibatch in algorithm.minibatches(batch, torch.arange(B), B, 0, 0):
        algorithm.loss(minibatch)[0].backward()
    rows = [next(iter(module.parameters())).grad.clone().numpy() for module in (algorithm.policies["g"], algorithm.critic)]
    return mine, np.concatenate(rows, 1), log_probs.movedim(-1, 0).numpy()


@pytest.mark.parametrize(
    ("name", "kind", "ranks", "order"),
    [*[("a2c", kind, 2, "ascending") for kind in KINDS], ("ppo", "neurcomm", 3, "reversed"), ("scalable_ac", "2", 3, "reversed")],
)
def test_several_ranks_give_the_gradients_of_one(name, kind, ranks, order):
    _, gradients, log_probs = learned(0, 1, name, kind, "ascending")
    assert (np.abs(gradients).max(1) > 1e-3).all()
    for mine, own, said in together(learned, ranks, name, kind, order):
        np.testing.assert_allclose(said, log_probs[mine], atol=1e-12)
        np.testing.assert_allclose(own, gradients[mine], atol=1e-9)


def test_several_ranks_find_who_sees_their_agents_one_way():
    _, gradients, _ = learned(0, 1, "scalable_ac", "2", "ascending", ONE_WAY)
    for mine, own, _ in together(learned, 3, "scalable_ac", "2", "reversed", ONE_WAY):
        np.testing.assert_allclose(own, gradients[mine], atol=1e-9)
