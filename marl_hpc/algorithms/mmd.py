"""Magnetic mirror descent for deep reinforcement learning (Sokota et al. 2023, "A unified approach to reinforcement learning, quantal
response equilibria, and two-player zero-sum games", ICLR, eq. 8): PPO whose policies are drawn to a magnet, here the uniform policy.

In self-play its last policy comes close to a quantal response equilibrium of its temperature, which is close to a Nash equilibrium as
the temperature falls to 0; plain policy gradients go round in circles in such games.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from marl_hpc.algorithms import Batch
from marl_hpc.algorithms.actor_critic import fields, memory_of
from marl_hpc.algorithms.ppo import PPO, PPOConfig
from marl_hpc.config import ConfigError
from marl_hpc.distributions import Categorical
from marl_hpc.types import InterfaceSpec

PROXIMAL = "proximal"  # the whole distribution that learning starts from


@dataclass(frozen=True, kw_only=True)
class MMDConfig(PPOConfig):
    # in units of return: advantages aren't normalized, or the temperature would be relative to how much they vary
    normalize_advantages: bool = False
    entropy: float = 0.0
    temperature: float = 0.1  # α: the weight of KL(π ‖ uniform over legal actions)
    temperature_end: float = 0.02
    temperature_steps: int = 0  # environment steps in which it falls geometrically; 0: it stays
    # 1 / η: the weight of KL(π ‖ the policy that a batch's learning starts from). It grows as the temperature falls: η and α fall alike
    kl_weight: float = 2.0


class MMD(PPO):
    Config = MMDConfig
    networked = False

    @classmethod
    def check(cls, config: MMDConfig, interface: InterfaceSpec, fragment: int) -> None:
        super().check(config, interface, fragment)
        for key in ("temperature_steps", "kl_weight"):
            if not getattr(config, key) >= 0:
                raise ConfigError(f"algorithm.{key}={getattr(config, key)} must be 0 or more")
        if not 0 < config.temperature_end <= config.temperature:
            raise ConfigError(
                f"algorithm.temperature={config.temperature} falls to algorithm.temperature_end={config.temperature_end}: expected numbers "
                "above 0, the second no greater than the first"
            )
        if config.entropy:
            raise ConfigError(
                f"algorithm.entropy={config.entropy} with algorithm=mmd, whose algorithm.temperature weighs entropy: leave entropy out"
            )
        if box := [group.name for group in interface.groups if group.action_space.kind == "box"]:
            raise ConfigError(
                f"algorithm=mmd draws policies to the uniform one, and {', '.join(box)} has continuous actions: use algorithm=ppo"
            )

    def minibatches(self, batch: Batch, columns: Tensor, total: int, seed: int, env_steps: int) -> Iterator[Batch]:
        config = self.config
        fallen = min(1.0, env_steps / config.temperature_steps) if config.temperature_steps else 0.0
        self.falls = (config.temperature_end / config.temperature) ** fallen
        yield from super().minibatches(batch, columns, total, seed, env_steps)

    def with_advantages(self, batch: Batch) -> Batch:
        with torch.no_grad():
            before = self.distributions(self.at_start(batch))
        found = super().with_advantages(batch)
        return {**found, **{f"{name}/{PROXIMAL}": x for name, x in before.items()}}

    def distributions(self, batch: Batch) -> dict[str, Tensor]:
        """Log-probabilities of all choices [L, S, N, A] by group, under the policies as they are now."""
        found: dict[str, Tensor] = {}
        for name, policy in self.policies.items():
            inputs = {group.name: fields(batch, group.name) for group in policy.groups}
            found |= policy.parameters_of(inputs, memory_of(batch, name), batch["first"])
        return found

    def loss(self, minibatch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """PPO's, and both divergences of the policies, summed over samples; see `MMDConfig` for their weights.

        KL(π ‖ uniform) is the logarithm of the number of legal choices, which has no gradient, less the entropy.
        """
        config, known = self.config, minibatch["known"].to(minibatch["target"].dtype)
        parameters = self.distributions(minibatch)
        log_probs, entropies, moved = [], [], []
        for policy in self.policies.values():
            for group in policy.groups:
                distribution, now = policy.distributions[group.name], parameters[group.name]
                assert isinstance(distribution, Categorical)
                log_probs.append(distribution.log_prob(now, minibatch[f"{group.name}/action"]))
                entropies.append(distribution.entropy(now))
                chances, log_ratio = now.exp(), now - minibatch[f"{group.name}/{PROXIMAL}"]
                moved.append((chances * log_ratio.masked_fill(chances == 0, 0)).sum(-1))  # illegal choices have none
        log_prob, entropy, divergence = (self.joined(minibatch, torch.cat(x, -1)) for x in (log_probs, entropies, moved))
        policy_loss, ratio = self.surrogate(minibatch, log_prob, known)
        value_loss = self.value_loss(minibatch)
        temperature, kl_weight = config.temperature * self.falls, config.kl_weight / self.falls
        regularized = policy_loss - temperature * entropy + kl_weight * divergence
        loss = ((regularized + config.value_weight * value_loss) * known).sum()
        with torch.no_grad():
            return loss, {
                **self.policy_sums(minibatch, log_prob, policy_loss, ratio, entropy, known),
                "value": (value_loss * known).sum(),
            }
