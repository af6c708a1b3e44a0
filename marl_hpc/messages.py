"""Networks that talk: agents with parameters of their own whose memories hear from their neighbors on a graph, with gradients.

One idea: a message is something a neighbor remembers from the step before, so that what an agent knows travels one hop a step, and the
gradient of what a receiver makes of it flows back to the sender's row. How neighbors are reached, here or on other ranks, is one
object's business: `LocalMessages`, or what `marl_hpc.comm.graphs` makes of it.

N agents in all, n here, D neighbors at most, H numbers of hidden state, F of a fingerprint. Pure torch: no ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from marl_hpc.networks import StackedNetwork, inward
from marl_hpc.types import GroupSpec

KINDS = ("neurcomm", "commnet", "dial")


class LocalMessages:
    """Gathers what each agent's neighbors hold, where all agents are here.

    >>> line = LocalMessages(neighbor_table([(0, 1), (1, 0), (1, 2), (2, 1)], 3))
    >>> line.gather(torch.tensor([[1.0], [2.0], [3.0]])).squeeze(-1).tolist()
    [[2.0, 0.0], [1.0, 3.0], [2.0, 0.0]]
    """

    def __init__(self, table: np.ndarray) -> None:
        """`table` int [n, D]: the row of each neighbor in what `reach` gives, -1 where there is none."""
        self.table = torch.from_numpy(np.ascontiguousarray(table, np.int64))
        self.degrees = (self.table >= 0).sum(1)  # [n]
        self.agents = np.arange(len(table))  # [n]: their numbers among all

    @cached_property
    def reverse(self) -> LocalMessages:
        """Gathers what those hold who hear each agent: the same where all hear each other.

        >>> LocalMessages(neighbor_table([(0, 1), (1, 2), (2, 0), (2, 1)], 3)).reverse.table.tolist()
        [[2, -1], [0, 2], [1, -1]]
        """
        table = self.table.cpu().numpy()
        hearer, place = np.nonzero(table >= 0)
        return LocalMessages(neighbor_table(np.stack([table[hearer, place], hearer], 1), len(table)))

    def reach(self, x: Tensor) -> Tensor:
        """x [n, …] of these agents, then what their neighbors elsewhere hold."""
        return x

    def gather(self, x: Tensor) -> Tensor:
        """x [n, …] to what each agent's neighbors hold [n, D, …], in the order of their numbers; zeros where there is none. With autograd:
        a neighbor's gradient is the sum over those that heard it."""
        if len(x) != len(self.table):
            raise ValueError(f"x has shape {tuple(x.shape)}, but {len(self.table)} agents are here; the first dimension is theirs")
        if self.table.device != x.device:
            self.table, self.degrees = self.table.to(x.device), self.degrees.to(x.device)
        rows, table = self.reach(x), self.table
        heard = rows.index_select(0, table.clamp_min(0).flatten()).view(*table.shape, *x.shape[1:])
        return heard.masked_fill((table < 0).view(*table.shape, *[1] * (x.dim() - 1)), 0)


def neighbor_table(pairs: Any, agents: int) -> np.ndarray:
    """Pairs (i, j), [E, 2], agent i hears agent j, to the neighbors of each [agents, D], in ascending order and filled up with -1.

    >>> neighbor_table([(0, 1), (1, 2), (1, 0)], 3).tolist()
    [[1, -1], [0, 2], [-1, -1]]
    """
    hearer, heard = np.asarray(pairs, np.int64).reshape(-1, 2).T
    order = np.lexsort((heard, hearer))
    hearer, heard = hearer[order], heard[order]
    degrees = np.bincount(hearer, minlength=agents)
    table = np.full((agents, degrees.max(initial=0)), -1)
    table[hearer, np.arange(len(hearer)) - np.repeat(np.cumsum(degrees) - degrees, degrees)] = heard
    return table


class CommunicatingNetwork(StackedNetwork):
    """A network for each agent, as `StackedNetwork` with a GRU, whose memory hears from neighbors. N(i) are agent i's neighbors, o their
    observations, e one-layer encoders of agent i's own, h hidden states, π policies' fingerprints; `messages` is one of:

    neurcomm  h_i,t = GRU([e(o_i,t, o_N(i),t), e(π_N(i),t-1), e(h_N(i),t-1)], h_i,t-1): Chu et al. 2020, with a GRU in
              place of its LSTM. A fingerprint is what a policy said the step before, without gradients; critics have none.
              Nor are they otherwise the paper's: see `marl_hpc.critics.Critic`.
    commnet   h_i,t = GRU(e(o_i,t) + C · mean over N(i) of h_j,t-1, h_i,t-1): Sukhbaatar et al. 2016, eq. 2 and section 2.3 (local
              connectivity, recurrence), with agents' own encoders and C.
    dial      h_i,t = GRU(e(o_i,t) + e(m_N(i),t-1), h_i,t-1), m_j = 1{W h_j + b > 0}: Foerster et al. 2016. Its discretized messages, of
              `message_size` bits, are sent in training too; gradients pass them as they would the logistic function of the paper's
              noisy channel (straight-through, Bengio et al. 2013), so that what is learned from is what acted.

    All is zero before an episode's first step, and for neighbors that there aren't. The hidden layers encode observations; the other
    encoders have as many outputs as the last of them. `fingerprint` F numbers stand in the memory behind the hidden state.
    `network["neighbors"]` are all agents' pairs (i, j), i hears j; where only some agents are here `neighbors` is to be set by who knows
    where the others are.
    """

    neighbors: LocalMessages | None

    def __init__(
        self, group: GroupSpec, outputs: int, network: Mapping[str, Any], final_gain: float, seed: int, *, free: int = 0, fingerprint: int = 0
    ) -> None:  # fmt: skip
        self.kind, size, width = network["messages"], math.prod(group.observation_shape), network["hidden"][-1]
        pairs, units = np.asarray(network["neighbors"]), int(network["gru"])
        degree = int(np.bincount(pairs[:, 0]).max())
        self.fingerprint = fingerprint if self.kind == "neurcomm" else 0
        observed, remembered = size, width
        if self.kind == "neurcomm":
            observed, remembered = size * (1 + degree), width * (3 if fingerprint else 2)
            beside = [(units * degree, width)] + [(fingerprint * degree, width)] * bool(fingerprint)
        elif self.kind == "commnet":
            beside = [(units, width)]
        else:
            bits = int(network["message_size"])
            beside = [(units, bits), (bits * degree, width)]
        super().__init__(
            group, outputs, network, final_gain, seed, free=free, observed=observed, remembered=remembered, beside=beside
        )
        everyone = int(pairs.max()) + 1 == self.agents
        self.neighbors = LocalMessages(neighbor_table(pairs, self.agents)) if everyone else None

    def forward(self, observation: Tensor, extra: Tensor | None = None) -> Tensor:
        """What goes into the memory of an agent that hears nothing yet [..., N, E]."""
        assert extra is None, "only the state would stand beside observations, and networked critics don't see it"
        return self.outward(self.perceive(observation, self.layers()), observation)

    def step(self, observation: Tensor, memory: Tensor, extra: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(outputs [..., N, A], hidden states [..., N, H]) from observations and the memory before [..., N, H + F]."""
        assert extra is None, "see forward"
        layers = self.layers()
        hidden = self.listen(self.perceive(observation, layers), inward(memory), layers)
        return self.outward(self.last(hidden, layers), observation), self.outward(hidden, observation)

    def unroll(
        self,
        observation: Tensor,
        memory: Tensor,
        first: Tensor,
        active: Tensor,
        extra: Tensor | None = None,
        describe: Callable[[int, Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As `AgentNetwork.unroll`, with memories [T, B, N, H + F]. `describe(t, outputs [B, N, A])` gives the fingerprints [B, N, F] of
        step t, where there are any."""
        assert extra is None, "see forward"
        layers = self.layers()
        x = self.perceive(observation, layers)
        steps = x.view(self.agents, len(first), -1, x.shape[-1])
        present, memories = inward(memory), []
        for t, seen in enumerate(steps.unbind(1)):
            present = present.masked_fill(first[t, None, :, None], 0)
            after = self.listen(seen, present, layers)
            if self.fingerprint:
                assert describe is not None, "who has fingerprints says what they are"
                with torch.no_grad():
                    said = describe(t, self.outward(self.last(after, layers), observation[t]))
                after = torch.cat([after, inward(said)], -1)
            present = torch.where(active[t].T.unsqueeze(-1), after, present)
            memories.append(present)
        stacked = torch.stack(memories, 1).flatten(1, 2)
        return self.outward(self.last(stacked[..., : self.units], layers), observation), self.outward(stacked, observation)

    def perceive(self, observation: Tensor, layers: list[Tensor]) -> Tensor:
        """Encoded observations [N, samples, E], of as many steps at once as there are."""
        x = self.inputs(observation, None)
        if self.kind == "neurcomm":
            x = torch.cat([x, side_by_side(self.hear(x))], -1)
        return self.first(x, layers)

    def listen(self, x: Tensor, memory: Tensor, layers: list[Tensor]) -> Tensor:
        """Hidden states [N, samples, H] after a step, from what agents perceive in it and all memories [N, samples, H + F] before."""
        kinds = [self.units, self.fingerprint] if self.fingerprint else [self.units]
        hidden = memory.split(kinds, -1)[0]
        others = layers[2 * self.inner + 4 :]
        if self.kind == "neurcomm":
            heard = [side_by_side(part) for part in self.hear(memory).split(kinds, -1)]
            parts = [self.activation(linear(part, others[2 * i :])) for i, part in enumerate(heard)]
            x = torch.cat([x, *parts], -1)
        elif self.kind == "commnet":
            total = self.hear(hidden).sum(1)
            assert self.neighbors is not None
            x = x + linear(total / self.neighbors.degrees.to(hidden).clamp_min(1)[:, None, None], others)
        else:
            x = x + self.activation(linear(side_by_side(self.hear(straight_through(linear(hidden, others)))), others[2:]))
        return self.cell(x, hidden, layers)

    def hear(self, x: Tensor) -> Tensor:
        """What neighbors hold [N, D, samples, F] of x [N, samples, F]."""
        if self.neighbors is None:
            raise RuntimeError(f"{self.agents} agents here have neighbors elsewhere: set `neighbors` to what reaches them")
        return self.neighbors.gather(x)


def connect(module: torch.nn.Module, neighbors: LocalMessages) -> None:
    """Let agents hear their neighbors by this from now on."""
    for network in module.modules():
        if isinstance(network, CommunicatingNetwork):
            network.neighbors = neighbors


def side_by_side(heard: Tensor) -> Tensor:
    """[N, D, samples, F] to [N, samples, D·F]."""
    return heard.transpose(1, 2).flatten(2)


def linear(x: Tensor, layers: list[Tensor]) -> Tensor:
    """The first layer of these, on x [N, samples, F]."""
    return torch.baddbmm(layers[1], x, layers[0])


def straight_through(x: Tensor) -> Tensor:
    """1 where x > 0, else 0, with the gradient of the logistic function.

    >>> straight_through(torch.tensor([-2.0, 3.0])).tolist()
    [0.0, 1.0]
    """
    soft = torch.sigmoid(x)
    return (x > 0).to(x) + (soft - soft.detach())
