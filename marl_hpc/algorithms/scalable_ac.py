"""Scalable actor-critic (Qu, Wierman & Li 2020, "Scalable reinforcement learning of localized policies for multi-agent networked systems",
L4DC): each agent's critic sees everybody within κ hops, and an agent improves the mean over the critics that see it.

Where what an agent does fades with distance, what is cut off fades exponentially in κ, and no size of anything here depends on N.
Legend: κ hops, n agents here, N in all, K within κ hops of an agent at most, D observation size, A numbers of an action, T time, B copies.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from marl_hpc import topology
from marl_hpc.algorithms import Batch
from marl_hpc.algorithms.a2c import A2C, A2CConfig
from marl_hpc.algorithms.actor_critic import fields, moments_of
from marl_hpc.config import ConfigError
from marl_hpc.distributions import Categorical, Distribution, distribution_of, draw_noise
from marl_hpc.keyed_random import NEXT_ACTION, generator
from marl_hpc.messages import LocalMessages, neighbor_table, side_by_side
from marl_hpc.networks import StackedNetwork, inward
from marl_hpc.types import GroupSpec, InterfaceSpec


@dataclass(frozen=True, kw_only=True)
class ScalableACConfig(A2CConfig):
    kappa: int = 1  # hops that a critic sees; an agent's policy improves the critics that see it
    gae_lambda: float = 0.0  # of critics' targets; 0: TD(0), as in the paper
    normalize_advantages: bool = True


class ScalableAC(A2C):
    """One gradient step a batch. The critics' targets are r_i,t + γ Q_i(o_t+1, a_t+1), SARSA's (with `gae_lambda` their λ-returns); the
    policy gradient of agent i is the mean of ∇ log π_i(a_i | o_i) · (1/N) Σ_j Q_j over those j, i itself included, whose critics see i (the
    paper's algorithm 1, whose graphs are undirected) and whose episode goes on. The mean of that sum over a batch is taken off where
    `normalize_advantages`, and its scale with it."""

    Config = ScalableACConfig
    local_critics = True

    def __init__(self, config: ScalableACConfig, interface: InterfaceSpec, *arguments: Any, **options: Any) -> None:
        super().__init__(config, interface, *arguments, **options)
        self.hops = config.kappa
        self.everyone = 1 + max(max(pair) for pair in interface.neighbors)  # N

    def build_critic(self, network: dict[str, Any], seeds: Iterator[int]) -> LocalCritic:
        return LocalCritic(self.interface.groups[0], self.interface.neighbors, self.config.kappa, network, next(seeds))

    @classmethod
    def check(cls, config: ScalableACConfig, interface: InterfaceSpec, fragment: int) -> None:
        if not interface.stacked:
            raise ConfigError(
                f"algorithm=scalable_ac needs paradigm=networked, where agents have neighbors; got paradigm={interface.paradigm}: set that, "
                "or use algorithm=a2c"
            )
        if config.messages != "none" or config.gru:
            raise ConfigError(
                f"algorithm.messages={config.messages} and algorithm.gru={config.gru} with algorithm=scalable_ac, whose policies are of present "
                "observations: leave messages out and set gru=0, or use algorithm=a2c"
            )
        if interface.turns > 1:
            raise ConfigError(
                "algorithm=scalable_ac sums what critics say of the same moment: its agents act at once, and this environment's take turns; "
                "use algorithm=a2c"
            )
        super().check(config, interface, fragment)
        if config.kappa < 1:
            raise ConfigError(f"algorithm.kappa={config.kappa} must be 1 hop or more")
        if interface.mix != "none":
            raise ConfigError(
                f"topology.mix={interface.mix} with algorithm=scalable_ac: critics of different neighborhoods have nothing to agree on; "
                "set topology.mix=none"
            )
        if config.correction == "vtrace":
            raise ConfigError(
                "algorithm.correction=vtrace with algorithm=scalable_ac, whose critics judge actions: none or truncated"
            )
        if config.gae_lambda < 0 or config.gae_lambda > 1:
            raise ConfigError(f"algorithm.gae_lambda={config.gae_lambda} must lie between 0 and 1")

    def connect(self, neighbors: LocalMessages) -> None:
        self.critic.neighbors = neighbors

    def minibatches(self, batch: Batch, columns: Tensor, total: int, seed: int, env_steps: int) -> Iterator[Batch]:
        yield from super().minibatches(self.with_next_actions(batch, seed), columns, total, seed, env_steps)

    @torch.no_grad()
    def with_next_actions(self, batch: Batch, seed: int) -> Batch:
        """Add what agents would do next: drawn, where their episode or the fragment ends and they don't come to do it."""
        (policy,) = self.policies.values()
        (group,) = policy.groups
        name = group.name
        seen = batch[f"{name}/next_observation"]
        inputs = {"observation": seen, "active": batch[f"{name}/next_active"]}
        if f"{name}/next_action_mask" in batch:
            inputs["action_mask"] = batch[f"{name}/next_action_mask"]
        steps, copies = seen.shape[:2]
        # of all agents, on whatever ranks they are, so that the draw doesn't depend on that
        noise = draw_noise(group.action_space, generator(seed, NEXT_ACTION), (steps * copies, self.everyone))
        noise = noise[:, self.critic.connected.agents]
        flat = {field: x.flatten(0, 1) for field, x in inputs.items()}
        drawn = policy.act({name: flat}, seen.new_zeros(0), {name: torch.from_numpy(noise).to(seen)})[0][name]
        return {**batch, f"{name}/next_action": drawn.unflatten(0, (steps, copies))}

    def with_advantages(self, batch: Batch) -> Batch:
        with torch.no_grad():
            worth = self.values.denormalize(self.critic.unroll(batch, None)[0])
            # an agent whose episode is over has nothing left to gain, and its critic never learns to say so
            rows = (worth * self.together(batch, "active")).movedim(-1, 0)
            nearby = (rows + self.critic.heard_by(rows).sum(1)).movedim(0, -1) / self.everyone
        batch = super().with_advantages(batch)
        if self.config.normalize_advantages:
            count, total, squares = moments_of(nearby, batch["known"], each=True)
            mean = total / count.clamp_min(1)
            std = (squares / count.clamp_min(1) - mean * mean).clamp_min(0).sqrt()
            nearby = (nearby - mean.to(nearby)) / (std.to(nearby) + 1e-8)
        return {**batch, "advantage": nearby}


class LocalCritic(nn.Module):
    """Q_i of the observations and actions of agent i and everybody within κ hops of it: a network for each agent, [n, P] in one parameter.
    In order: the agent itself, then the others by number; zeros where there are fewer of them than K, and for who doesn't act."""

    neighbors: LocalMessages | None
    units, talks = 0, True

    def __init__(
        self, group: GroupSpec, pairs: tuple[tuple[int, int], ...], kappa: int, network: Mapping[str, Any], seed: int
    ) -> None:
        super().__init__()
        self.group, self.distribution = group, distribution_of(group.action_space, "stochastic")
        graph = topology.from_edges(np.array(pairs), directed=True)
        table = neighbor_table(topology.within(graph, kappa).edges, graph.agents)
        shape = (flat_size(group) + group.action_space.size) * (1 + table.shape[1])
        view = replace(group, observation_shape=(shape,), action_mask=False)
        self.network = StackedNetwork(view, 1, {**network, "gru": 0}, 1.0, seed)
        self.neighbors = LocalMessages(table) if graph.agents == len(group.agents) else None

    def unroll(self, batch: Batch, memory: Tensor | None) -> tuple[Tensor, Tensor]:
        """(Q [T, B, n] of what agents did, no memory)."""
        own = fields(batch, self.group.name)
        q = self.judge(own["observation"], own["action"], own["active"])
        return q, q.new_zeros(*q.shape, 0)

    def after(self, batch: Batch, memory: Tensor) -> Tensor:
        """Q [..., n] of what they would do next, those who were cut off too: as if their episode had gone on."""
        own = fields(batch, self.group.name)
        cut = own["truncated"]
        return self.judge(own["next_observation"], own["next_action"], own["next_active"] | cut, cut)

    def judge(self, observation: Tensor, action: Tensor, acting: Tensor, cut: Tensor | None = None) -> Tensor:
        """Q [..., n] of observations [..., n, *shape] and actions of those who are `acting` [..., n]. Who has been `cut` off is seen by those
        only who were cut off with it: the others go on without it."""
        lead = acting.dim()
        seen = observation.flatten(lead) if observation.dim() > lead else observation.unsqueeze(-1)
        each = torch.cat([seen, encoded(self.distribution, action, observation)], -1) * acting.unsqueeze(-1)
        rows = inward(each)
        if cut is None:
            heard = self.hear(rows)
        else:
            own = inward(cut.unsqueeze(-1).to(each))  # [n, samples, 1]
            heard = self.hear(torch.cat([rows, own], -1))
            heard = heard[..., :-1] * (heard[..., -1:] <= own.unsqueeze(1))
        x = torch.cat([rows, side_by_side(heard)], -1)
        return self.network(x.movedim(0, -2).reshape(*each.shape[:-1], -1)).squeeze(-1)

    def hear(self, x: Tensor) -> Tensor:
        """x [n, …] of everybody within κ hops [n, K, …]."""
        return self.connected.gather(x)

    def heard_by(self, x: Tensor) -> Tensor:
        """x [n, …] of everybody whose critic sees an agent [n, J, …], J at most; zeros where there are fewer."""
        return self.connected.reverse.gather(x)

    @property
    def connected(self) -> LocalMessages:
        if self.neighbors is None:
            raise RuntimeError(
                f"{len(self.group.agents)} agents here have neighbors elsewhere: set `neighbors` to what reaches them"
            )
        return self.neighbors


def flat_size(group: GroupSpec) -> int:
    return int(np.prod(group.observation_shape, dtype=int))


def encoded(distribution: Distribution, action: Tensor, like: Tensor) -> Tensor:
    """Actions as numbers [..., A]: one-hots of choices."""
    return distribution.one_hot(action, like.dtype) if isinstance(distribution, Categorical) else action
