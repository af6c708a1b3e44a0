"""Multi-agent deep deterministic policy gradients (Lowe et al. 2017): each agent's critic knows what all agents see and do, and tells
the agent how to change its own action; the others' actions are those that they took.

Discrete choices are differentiated by straight-through Gumbel-softmax, the agent's own alone; its critic is linear in it (see
`ActionCritic`), so that the slope between two choices is the difference of their values. Agents explore by sampling (choices) or by noise
on their actions (boxes).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from marl_hpc.actors import legal
from marl_hpc.algorithms import Batch, annealed, check_epsilon
from marl_hpc.algorithms.off_policy import priorities
from marl_hpc.algorithms.off_policy_actor_critic import (
    CRITIC,
    OffPolicyActorCritic,
    OffPolicyActorCriticConfig,
    check_applies,
    fixed,
)
from marl_hpc.config import ConfigError
from marl_hpc.critics import ActionCritic
from marl_hpc.distributions import Categorical
from marl_hpc.types import InterfaceSpec


@dataclass(frozen=True, kw_only=True)
class MADDPGConfig(OffPolicyActorCriticConfig):
    temperature: float = 1.0  # of the softmax whose gradient stands in for that of a choice
    regularization: float = 1e-3  # of the squares of what policies say: logits, and actions of boxes before their limits
    noise: float = 0.1  # boxes: the deviation of exploring actions, which lie between -1 and 1
    epsilon_start: float = 0.0  # choices: the share of uniformly random ones, changing linearly …
    epsilon_end: float = 0.0
    epsilon_steps: int = 50_000  # … over so many environment steps


class MADDPG(OffPolicyActorCritic):
    Config = MADDPGConfig
    sums = ("count", "value", "q", "policy", "output")

    def hold_all(self, *, device: Any, dtype: torch.dtype) -> None:
        modules = [*self.policies.values(), *self.critics]
        copies = self.hold(modules, modules, device=device, dtype=dtype)
        self.target_policies: dict[str, Any] = dict(zip(self.policies, copies, strict=False))
        self.target_critic: ActionCritic = copies[-1]  # type: ignore[assignment]

    @classmethod
    def network(cls, config: MADDPGConfig, interface: InterfaceSpec) -> dict[str, Any]:
        return {**super().network(config, interface), "head": "bounded", "log_std": math.log(config.noise)}

    @staticmethod
    def exploration(config: MADDPGConfig, env_steps: int) -> float:
        return annealed(config, env_steps)

    @classmethod
    def check(cls, config: MADDPGConfig, interface: InterfaceSpec, fragment: int) -> None:
        if interface.paradigm != "ctde":
            instead = "sac or ppo" if interface.paradigm == "independent" else "ppo or a2c"
            raise ConfigError(
                f"algorithm=maddpg needs a team, it needs paradigm=ctde; got paradigm={interface.paradigm}: use algorithm={instead} there"
            )
        super().check(config, interface, fragment)
        check_epsilon(config)
        if not config.temperature > 0:
            raise ConfigError(f"algorithm.temperature={config.temperature} must be greater than 0")
        if not config.regularization >= 0:
            raise ConfigError(f"algorithm.regularization={config.regularization} must be 0 or more")
        if not config.noise > 0:
            raise ConfigError(f"algorithm.noise={config.noise} must be greater than 0: nothing else explores the actions of a box")
        exploring = ("epsilon_start", "epsilon_end", "epsilon_steps")
        check_applies(config, interface, choices=("temperature", *exploring), boxes=("noise",))

    def loss(self, minibatch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return self.critic_loss(minibatch) if self.trained == CRITIC else self.policy_loss(minibatch)

    def critic_loss(self, minibatch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Squared TD errors, summed over samples and weighted against their priorities."""
        taken, (critic,) = self.taken(minibatch), self.critics
        target, known = self.bootstrapped(minibatch, taken)
        q = self.value(critic(minibatch, taken, memory=critic.memories(minibatch, taken)[0]), taken)
        error = (q - target) * known
        with torch.no_grad():
            self.errors = priorities(error, known)
            kept = {"count": known.to(q.dtype), "value": error**2, "q": q * known}
        return (minibatch["weight"].unsqueeze(-1) * error**2).sum(), self.filled({name: x.sum() for name, x in kept.items()})

    @torch.no_grad()
    def bootstrapped(self, minibatch: Batch, taken: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """(what Q should be, where that is known) [L, S, N], by the target critic of what the target policies would do."""
        now, after = self.outputs(minibatch, self.target_policies)
        before, behind = self.target_critic.memories(minibatch, taken)

        def value(outputs: Mapping[str, Tensor], prefix: str, memory: Tensor | None) -> Tensor:
            actions = self.actions(minibatch, outputs, prefix)
            return self.value(self.target_critic(minibatch, actions, prefix, memory=memory), actions)

        next_values = value(after, "next_", behind)
        # a single step bootstraps from what it led to alone
        values = value(now, "", before) if len(next_values) > 1 else torch.zeros_like(next_values)
        return self.targets(minibatch, values, next_values, team=False)

    def policy_loss(self, minibatch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Minus Q of each agent's own action, the others' being what they did, summed over the samples in which agents act (Lowe et al.
        2017, eq. 6), and the squares of what policies say, legal choices only."""
        acting, taken, (critic,) = self.learned(minibatch), self.taken(minibatch), self.critics
        outputs = self.outputs(minibatch, self.policies)[0]
        with torch.no_grad():
            memory = critic.memories(minibatch, taken)[0]
        with fixed([critic]):
            own = self.actions(minibatch, outputs, "")
            q = self.value(critic(minibatch, taken, own=own, memory=memory), own)
        squares = self.joined({name: self.square(minibatch, name, x) for name, x in outputs.items()})
        policy, output = -q * acting, squares * acting
        loss = minibatch["weight"].unsqueeze(-1) * (policy + self.config.regularization * output)
        kept = {"count": acting, "policy": policy, "output": output}
        return loss.sum(), self.filled({name: x.sum() for name, x in kept.items()})

    def actions(self, minibatch: Batch, outputs: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
        """What policies would do, encoded, with the gradient of doing so: boxes without noise, choices by a draw."""
        actions = {}
        for name, x in self.settle(minibatch, outputs, prefix).items():
            distribution = self.distribution(name)
            if isinstance(distribution, Categorical):
                actions[name] = distribution.relaxed(x, minibatch[f"{name}/{prefix}noise"], self.config.temperature)
            else:
                actions[name] = distribution.mode(x)
        return actions

    def square(self, minibatch: Batch, group: str, outputs: Tensor) -> Tensor:
        """The mean square [..., N] of what a policy says."""
        distribution = self.distribution(group)
        if not isinstance(distribution, Categorical):
            return (outputs**2).mean(-1)
        allowed = legal(distribution, outputs, minibatch.get(f"{group}/action_mask"))
        return (outputs**2 * allowed).sum(-1) / allowed.sum(-1).clamp_min(1)
