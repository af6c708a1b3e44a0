"""What off-policy actor-critics share: policies, critics of actions, and for each drawn minibatch one pass after the other, each of
which trains its own part of the parameters.

Where learners draw actions, the noise is keyed by the iteration and drawn for the minibatch of all replicas, so that it doesn't matter
how many there are. Critics with a memory begin each sequence without one; `burn_in` warms it up.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from marl_hpc.actors import Actor, PolicyNetwork, build_policies
from marl_hpc.algorithms import Batch
from marl_hpc.algorithms.actor_critic import fields, memory_of
from marl_hpc.algorithms.off_policy import OffPolicy, OffPolicyConfig
from marl_hpc.config import ConfigError
from marl_hpc.critics import ActionCritic
from marl_hpc.distributions import Categorical, draw_noise
from marl_hpc.keyed_random import INITIALIZATION, MINIBATCH, generator, integer
from marl_hpc.types import Exchange, InterfaceSpec

POLICY, CRITIC = 0, 1  # places in `parts`


@dataclass(frozen=True, kw_only=True)
class OffPolicyActorCriticConfig(OffPolicyConfig):
    activation: str = "relu"
    critic_lr: float = 1e-3
    critic: str = "separate"  # paradigm=ctde: separate (one a group, over the state and own observations) | shared (over the state)


class OffPolicyActorCritic(OffPolicy, ABC):
    """Their common part. `loss` is the algorithm's own: of the part that `trained` names."""

    passes: tuple[int, ...] = (CRITIC, POLICY)  # what each minibatch trains, in this order
    twins = 1  # critics beside each other

    def __init__(
        self, config: Any, interface: InterfaceSpec, exchange: Exchange, *, device: Any, dtype: torch.dtype, seed: int
    ) -> None:
        super().__init__(config, interface, exchange)
        seeds = (integer(seed, INITIALIZATION, i) for i in range(1 << 30))
        network = self.network(config, interface)
        self.policies = build_policies(interface.policies, network, seeds)
        shared = config.critic == "shared"
        self.critics = [ActionCritic(interface, network, seeds, shared) for _ in range(self.twins)]
        self.first_row = exchange.index * config.batch // exchange.size  # of this replica in the minibatch of all
        self.hold_all(device=device, dtype=dtype)

    @abstractmethod
    def hold_all(self, *, device: Any, dtype: torch.dtype) -> None:
        """Put all modules into the flat buffer, policies first and critics behind them, and keep target copies."""

    @classmethod
    def check(cls, config: Any, interface: InterfaceSpec, fragment: int) -> None:
        super().check(config, interface, fragment)
        if not config.critic_lr > 0:
            raise ConfigError(f"algorithm.critic_lr={config.critic_lr} must be greater than 0")
        if config.critic not in ("separate", "shared"):
            raise ConfigError(f"algorithm.critic={config.critic!r} is not a choice; separate or shared")
        if config.critic == "shared" and interface.critic_sees != "state":
            raise ConfigError(f"algorithm.critic=shared needs paradigm=ctde; got paradigm={interface.paradigm}")

    def parts(self) -> list[tuple[slice, float]]:
        """Policies, and critics."""
        policies = sum(self.parameters.sizes[: len(self.policies)])
        critics = policies + sum(self.parameters.sizes[len(self.policies) : len(self.policies) + self.twins])
        return [(slice(0, policies), self.config.lr), (slice(policies, critics), self.config.critic_lr)]

    def minibatches(self, batch: Batch, columns: Tensor, total: int, seed: int, env_steps: int) -> Iterator[Batch]:
        """Each drawn minibatch once for each pass, with noise for the actions that are drawn in learning."""
        for u, minibatch in enumerate(super().minibatches(batch, columns, total, seed, env_steps)):
            minibatch = {**minibatch, **self.noise(minibatch["first"], generator(seed, MINIBATCH, u))}
            for place in self.passes:
                self.trained = place
                yield minibatch

    def noise(self, first: Tensor, random: Any) -> Batch:
        """{"group/noise", "group/next_noise": [L, S, N, …]} for actions at each step and at what it led to."""
        noise, mine = {}, slice(self.first_row, self.first_row + first.shape[1])
        for g in self.interface.groups:
            for name in ("noise", "next_noise"):
                drawn = draw_noise(g.action_space, random, (len(first), self.config.batch, len(g.agents)))
                noise[f"{g.name}/{name}"] = torch.from_numpy(drawn[:, mine]).to(self.parameters.values)
        return noise

    def stepped(self, updates: int) -> None:
        """Targets move after a minibatch's last pass."""
        if self.trained == self.passes[-1]:
            super().stepped(updates // len(self.passes))

    def summarize(self, sums: Tensor) -> dict[str, float]:
        """Means over the samples of each pass."""
        totals = sums.view(-1, len(self.passes), len(self.sums)).sum(0)
        means = (totals / totals[:, :1].clamp_min(1)).sum(0).tolist()
        return {f"loss/{name}": mean for name, mean in zip(self.sums[1:], means[1:], strict=True)}

    def outputs(self, minibatch: Batch, policies: Mapping[str, PolicyNetwork]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What policies say [L, S, N, …] at each step and at what it led to, by group."""
        now, after = {}, {}
        for name, policy in policies.items():
            actor = cast(Actor, policy)
            seen = fields(minibatch, actor.group.name)
            now[actor.group.name], memory = actor.unroll(seen, memory_of(minibatch, name), minibatch["first"])
            with torch.no_grad():
                after[actor.group.name] = actor.values_of(seen["next_observation"], memory)
        return now, after

    def settle(self, minibatch: Batch, outputs: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
        """Distribution parameters from what policies say."""
        actors = {cast(Actor, policy).group.name: cast(Actor, policy) for policy in self.policies.values()}
        return {
            name: actors[name].settle(actors[name].group, x, minibatch.get(f"{name}/{prefix}action_mask"))
            for name, x in outputs.items()
        }

    def encode(self, group: str, action: Tensor) -> Tensor:
        """Actions of a group as critics take them: [..., N, E]."""
        distribution = self.distribution(group)
        return distribution.one_hot(action, self.parameters.values.dtype) if isinstance(distribution, Categorical) else action

    def distribution(self, group: str) -> Any:
        return next(p.distributions[group] for p in self.policies.values() if group in p.distributions)

    def value(self, q: Mapping[str, Tensor], actions: Mapping[str, Tensor]) -> Tensor:
        """Of each agent's Q, that of its encoded action; all groups' agents side by side [..., N]."""
        values = [q[name] * actions[name] if isinstance(self.distribution(name), Categorical) else q[name] for name in self.names]
        return torch.cat([x.sum(-1) for x in values], -1)

    def taken(self, minibatch: Batch) -> dict[str, Tensor]:
        """What all agents did, encoded."""
        return {name: self.encode(name, minibatch[f"{name}/action"]) for name in self.names}

    def learned(self, minibatch: Batch) -> Tensor:
        """Where policies learn [L, S, N], as 0 and 1: agents act, and memories are warm."""
        acting = self.together(minibatch, "active").to(self.parameters.values.dtype)
        acting[: self.config.burn_in if self.config.gru else 0] = 0
        return acting

    def joined(self, by_group: Mapping[str, Tensor]) -> Tensor:
        """All groups' agents side by side."""
        return torch.cat([by_group[name] for name in self.names], -1)

    def filled(self, sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Zero for the sums that a pass doesn't have."""
        nothing = self.parameters.values.new_zeros(())
        return {name: sums[name].detach() if name in sums else nothing for name in self.sums}


def check_applies(config: Any, interface: InterfaceSpec, *, choices: Sequence[str], boxes: Sequence[str]) -> None:
    """Refuse options about choices where no agent has any, and about boxes alike."""
    kinds = {"boxes" if group.action_space.kind == "box" else "choices" for group in interface.groups}
    usual = type(config)()
    for kind, keys in (("choices", choices), ("boxes", boxes)):
        for key in keys:
            if kind not in kinds and getattr(config, key) != getattr(usual, key):
                raise ConfigError(
                    f"algorithm.{key}={getattr(config, key)} is about {kind}, and no group of interface {interface.name!r} acts in such; leave it out"
                )


@contextmanager
def fixed(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Gradients pass through these modules, none reach their parameters."""
    parameters = [p for module in modules for p in module.parameters()]
    for p in parameters:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in parameters:
            p.requires_grad_(True)
