"""How the agents of one rank reach their graph neighbors: what a NetworkedAgent exchanges by.

One idea: who has which agent is a table [N] that every rank knows, and each exchange has its plan, made once.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from marl_hpc.comm.collectives import losing
from marl_hpc.comm.exchange_plan import ExchangePlan
from marl_hpc.comm.neighbors import neighbor_allreduce, neighbor_gather
from marl_hpc.comm.transports import Nobody, PointToPoint, Transport
from marl_hpc.messages import LocalMessages, neighbor_table


class GraphExchange:
    """See `marl_hpc.agents.networked.Neighbors`. n agents of this rank."""

    size, index = 1, 0

    def __init__(
        self,
        agents: np.ndarray,
        mixing: Sequence[ExchangePlan],
        rewards: ExchangePlan | None,
        transport: Transport,
        rounds: int = 1,
        kernel: str = "torch",
    ) -> None:
        """`agents` [n]: their numbers, in the order of rows. `mixing`: plans that are used in turn, `rounds` of them a step; `rewards`: that of each agent's reward; `kernel`: see `neighbor_allreduce`."""
        self.agents, self.transport, self.rounds, self.kernel, self.step = agents, transport, rounds, kernel, 0
        self.parts, self.everyone = len(mixing[0].counts), len(mixing[0].owners)
        self.mixing = [(plan, order_of(agents, plan)) for plan in mixing]
        self.reward = None if rewards is None else (rewards, order_of(agents, rewards))
        self.bytes, self.messages, self.readers = 0, 0, set[int]()  # sent since somebody asked

    def sum_(self, tensor: Tensor) -> None:
        """Nothing is summed over all: agents have statistics of their own."""

    def total_(self, tensor: Tensor) -> None:
        """Sum over all ranks, in place; for metrics, agents learn from what neighbors hold only."""
        if self.parts > 1:
            with losing("another learner"):
                dist.all_reduce(tensor)

    def traffic(self) -> dict[str, float]:
        """What this rank sent since the last call: `bytes` of rows that others need, counted once for each rank that reads them, in shared
        memory, too, where they are read in place; `messages`, none in shared memory; `ranks` that read some."""
        sent = {"bytes": float(self.bytes), "messages": float(self.messages), "ranks": float(len(self.readers))}
        self.bytes, self.messages, self.readers = 0, 0, set()
        return sent

    def mix(self, rows: Tensor) -> None:
        for i in range(self.rounds):
            plan, order = self.mixing[(self.step * self.rounds + i) % len(self.mixing)]
            self._exchange(rows, plan, order, rows)

    def turn_to(self, step: int) -> None:
        self.step = step

    def rewards(self, reward: Tensor) -> Tensor:
        if self.reward is None:
            return reward
        rows = reward.movedim(-1, 0).reshape(reward.shape[-1], -1).contiguous()
        self._exchange(rows, *self.reward, rows)
        return rows.view(reward.shape[-1], *reward.shape[:-1]).movedim(0, -1).contiguous()

    def _exchange(self, rows: Tensor, plan: ExchangePlan, order: tuple[Tensor, Tensor] | None, out: Tensor) -> None:
        self.bytes += plan.traffic.bytes_sent(rows[:1].numel() * rows.element_size())
        self.messages += self.transport.messages(plan)
        self.readers |= plan.sends.keys()
        if order is None:
            neighbor_allreduce(rows, plan, transport=self.transport, out=out, kernel=self.kernel)
        else:
            there, back = (x.to(rows.device) for x in order)
            out.copy_(neighbor_allreduce(rows[there], plan, transport=self.transport, kernel=self.kernel)[back])


class Messages(LocalMessages):
    """Gathers what each agent's neighbors hold, on whatever ranks those are; gradients go back to them. All ranks must gather alike, and
    run backward alike: the same numbers of samples, in the same order."""

    def __init__(
        self, adjacency: Any, owners: Any, rank: int, transport: PointToPoint | Nobody, agents: np.ndarray | None = None
    ) -> None:
        """`adjacency`: SciPy CSR [N, N], nonzero where agent i hears agent j. `owners` [N]: the rank that has each agent. `agents` [n]: this
        rank's, in the order in which they are gathered for; default: that of a plan for this adjacency."""
        plan = ExchangePlan((adjacency != 0).astype(float), owners, rank)
        agents = plan.agents if agents is None else agents
        self.adjacency, self.plan, self.transport, self.order = adjacency, plan, transport, order_of(agents, plan)
        row = plan.places.copy()  # of each agent, in what `reach` gives
        row[agents] = np.arange(len(agents))
        everybodys = neighbor_table(np.stack(adjacency.nonzero(), 1), len(row))
        heard = everybodys[agents]  # as wide as that of the agent with the most neighbors, wherever it is
        super().__init__(np.where(heard >= 0, row[heard], -1))
        self.agents = agents

    @cached_property
    def reverse(self) -> Messages:
        """Of the same agents, by the same transport."""
        return Messages(self.adjacency.T.tocsr(), self.plan.owners, self.plan.rank, self.transport, self.agents)

    def reach(self, x: Tensor) -> Tensor:
        if self.order is None:
            return neighbor_gather(x, self.plan, self.transport)
        there, back = self.order = (self.order[0].to(x.device), self.order[1].to(x.device))  # once: `to` leaves what is there
        rows = neighbor_gather(x[there], self.plan, self.transport)
        return torch.cat([rows[: len(x)][back], rows[len(x) :]])


def order_of(agents: np.ndarray, plan: ExchangePlan) -> tuple[Tensor, Tensor] | None:
    """(places of the plan's agents among `agents`, and the way back); None where they are in the same order."""
    if np.array_equal(agents, plan.agents):
        return None
    place = np.empty(len(plan.owners), int)
    place[agents] = np.arange(len(agents))
    there = place[plan.agents]
    return torch.from_numpy(there), torch.from_numpy(np.argsort(there))


def discounted(adjacency: Any, discount: float, hops: int) -> Any:
    """Weights [N, N], SciPy CSR: discount to the power of the distance between two agents, up to so many hops; 1 for an agent itself.

    Source: Chu et al. 2020, eq. 3 (spatial discount); Qu et al. 2020 for the truncation.

    >>> import scipy.sparse
    >>> discounted(scipy.sparse.csr_matrix([[0, 1, 0], [1, 0, 1], [0, 1, 0]]), 0.5, 2).toarray().tolist()
    [[1.0, 0.5, 0.25], [0.5, 1.0, 0.5], [0.25, 0.5, 1.0]]
    """
    import scipy.sparse

    reached = scipy.sparse.eye(adjacency.shape[0], format="csr")
    total, steps = reached.copy(), (adjacency != 0).astype(float).tocsr()
    for hop in range(1, hops + 1):
        wider = ((reached + reached @ steps) != 0).astype(float)
        added = wider - reached
        added.eliminate_zeros()
        if not added.nnz:
            break
        total, reached = total + discount**hop * added, wider
    total.sort_indices()
    return total.tocsr()
