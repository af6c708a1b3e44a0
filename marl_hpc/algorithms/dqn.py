"""Deep Q-learning, each agent by itself (IQL; Tan 1993, Mnih et al. 2015), with double-Q targets (van Hasselt et al. 2016) and dueling
heads (Wang et al. 2016). `vdn` and `qmix` are this with one value for a team, mixed from its agents'.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from marl_hpc.actors import Actor, build_policies
from marl_hpc.algorithms import Batch, annealed, check_epsilon
from marl_hpc.algorithms.actor_critic import fields, memory_of
from marl_hpc.algorithms.off_policy import OffPolicy, OffPolicyConfig, priorities
from marl_hpc.config import ConfigError
from marl_hpc.distributions import Categorical
from marl_hpc.keyed_random import INITIALIZATION, integer
from marl_hpc.types import Exchange, InterfaceSpec


@dataclass(frozen=True, kw_only=True)
class DQNConfig(OffPolicyConfig):
    double: bool = True
    dueling: bool = False
    epsilon_start: float = 1.0  # the share of uniformly random actions, falling linearly …
    epsilon_end: float = 0.05
    epsilon_steps: int = 50_000  # … over so many environment steps


class DQN(OffPolicy):
    Config = DQNConfig
    sums = ("count", "value", "q")
    team = False  # one value for the team

    def __init__(
        self, config: DQNConfig, interface: InterfaceSpec, exchange: Exchange, *, device: Any, dtype: torch.dtype, seed: int
    ) -> None:
        super().__init__(config, interface, exchange)
        seeds = (integer(seed, INITIALIZATION, i) for i in range(1 << 30))
        self.policies = build_policies(interface.policies, self.network(config, interface), seeds)
        self.mixer = self.build_mixer(next(seeds))
        modules = [*self.policies.values(), self.mixer]
        copies = self.hold(modules, modules, device=device, dtype=dtype)
        self.target_policies = dict(zip(self.policies, copies, strict=False))
        self.target_mixer = copies[-1]

    def build_mixer(self, seed: int) -> nn.Module:
        return nn.Identity()

    @classmethod
    def network(cls, config: Any, interface: InterfaceSpec) -> dict[str, Any]:
        return {**super().network(config, interface), "head": "values", "dueling": config.dueling}

    @staticmethod
    def exploration(config: Any, env_steps: int) -> float:
        return annealed(config, env_steps)

    @classmethod
    def check(cls, config: Any, interface: InterfaceSpec, fragment: int) -> None:
        super().check(config, interface, fragment)
        check_epsilon(config)
        for group in interface.groups:
            if group.action_space.kind == "box":
                instead = {"independent": "ppo or sac", "ctde": "ppo, sac or maddpg", "centralized": "ppo or a2c"}[
                    interface.paradigm
                ]
                raise ConfigError(
                    f"algorithm={cls.__name__.lower()} chooses among actions, but group {group.name!r} acts in a Box of shape "
                    f"{group.action_space.shape}; use algorithm={instead}"
                )
        wanted = "ctde" if cls.team else "independent"
        if interface.paradigm != wanted:
            instead = {"independent": "dqn or ppo", "ctde": "vdn, qmix or ppo", "centralized": "ppo or a2c"}[interface.paradigm]
            raise ConfigError(
                f"algorithm={cls.__name__.lower()} needs paradigm={wanted}; got paradigm={interface.paradigm}: "
                f"use algorithm={instead} there"
            )

    def loss(self, minibatch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Squared TD errors, summed over samples and weighted against their priorities."""
        chosen, values, next_values = [], [], []
        for name, policy in self.policies.items():
            group = cast(Actor, policy).group
            q, best, best_after = self.q_values(minibatch, name)
            distribution = cast(Categorical, self.responding(policy).distributions[group.name])
            chosen.append(distribution.chosen(q, minibatch[f"{group.name}/action"]))
            values.append(best)
            next_values.append(best_after)
        active = self.together(minibatch, "active")
        q, value, next_value = torch.cat(chosen, -1), torch.cat(values, -1), torch.cat(next_values, -1)
        if self.team:
            # who is cut off acts no more but has a future all the same
            after = self.together(minibatch, "next_active") | self.together(minibatch, "truncated")
            q = self.mix(self.mixer, q * active, minibatch.get("state"))
            with torch.no_grad():
                value = self.mix(self.target_mixer, value * active, minibatch.get("state"))
                next_value = self.mix(self.target_mixer, next_value * after, minibatch.get("next_state"))
        target, known = self.targets(minibatch, value, next_value, team=self.team)
        error = (q - target) * known
        loss = (minibatch["weight"].unsqueeze(-1) * error**2).sum()
        with torch.no_grad():
            self.errors = priorities(error, known)
            kept = {"count": known.to(q.dtype), "value": error**2, "q": q * known}
            return loss, {name: x.sum() for name, x in kept.items()}

    def q_values(self, minibatch: Batch, name: str) -> tuple[Tensor, Tensor, Tensor]:
        """One policy's (Q [L, S, N, A], best value of each step [L, S, N], best value of what it led to [L, S, N])."""
        online, target = self.responding(self.policies[name]), self.responding(self.target_policies[name])
        seen, memory = fields(minibatch, online.group.name), memory_of(minibatch, name)
        distribution = cast(Categorical, online.distributions[online.group.name])
        q, after = online.unroll(seen, memory, minibatch["first"])
        with torch.no_grad():
            q_target, target_after = target.unroll(seen, memory, minibatch["first"])
            next_target = target.values_of(seen["next_observation"], target_after)
            judge = online.values_of(seen["next_observation"], after) if self.config.double else next_target
            best = distribution.chosen(
                q_target, best_of(distribution, q if self.config.double else q_target, seen.get("action_mask"))
            )
            best_after = distribution.chosen(next_target, best_of(distribution, judge, seen.get("next_action_mask")))
        return q, best, best_after

    def responding(self, policy: Any) -> Actor:
        """What has a policy's Q-values."""
        return cast(Actor, policy)

    def mix(self, mixer: nn.Module, values: Tensor, state: Tensor | None) -> Tensor:
        """A team's value [L, S, 1] from its agents' [L, S, N]."""
        return values.sum(-1, True)


def best_of(distribution: Categorical, q: Tensor, mask: Tensor | None) -> Tensor:
    """The legal action of the highest value."""
    return distribution.best(q if mask is None else q.masked_fill(~mask, torch.finfo(q.dtype).min))
