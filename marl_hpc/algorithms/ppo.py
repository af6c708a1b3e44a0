"""Proximal policy optimization (Schulman et al. 2017): IPPO (de Witt et al. 2020) under independent learning, MAPPO (Yu et al. 2022)
under centralized training, and one PPO over the joint action under fully centralized learning.

What critics see and what policies are is the paradigm's business; here are the clipped losses of one minibatch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from marl_hpc.algorithms import Batch
from marl_hpc.algorithms.actor_critic import ActorCritic, ActorCriticConfig
from marl_hpc.config import ConfigError
from marl_hpc.types import Exchange, InterfaceSpec


@dataclass(frozen=True, kw_only=True)
class PPOConfig(ActorCriticConfig):
    clip: float = 0.2
    value_clip: float | None = 0.2  # in units of the normalized value; none: no clipping
    epochs: int = 8
    minibatches: int = 4


# What travels behind the gradient, in this order. kl is Schulman's estimator k3 (joschu.net, 2020); ratio_deviation is the
# largest one of a replica, so its sum over replicas bounds the largest of all.
SUMS = ("count", "policy", "value", "entropy", "kl", "clipped", "ratio_deviation")


class PPO(ActorCritic):
    Config = PPOConfig
    sums = SUMS

    def __init__(
        self, config: PPOConfig, interface: InterfaceSpec, exchange: Exchange, *, device: Any, dtype: torch.dtype, seed: int
    ) -> None:
        super().__init__(config, interface, exchange, device=device, dtype=dtype, seed=seed)
        self.epochs, self.parts = config.epochs, config.minibatches

    @classmethod
    def check(cls, config: PPOConfig, interface: InterfaceSpec, fragment: int) -> None:
        super().check(config, interface, fragment)
        for key in ("epochs", "minibatches", "clip"):
            if not getattr(config, key) > 0:
                raise ConfigError(f"algorithm.{key}={getattr(config, key)} must be greater than 0")

    def loss(self, minibatch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Clipped surrogate minus entropy bonus plus clipped value loss, summed over samples.

        The surrogate is the decoupled one of Hilton et al. 2022 (eq. 4): clipped around the policy that this batch's learning
        starts from, weighted by that policy's probability over the one that acted, truncated at `max_weight`. Without lag both
        are the same policy, the weight is 1, and it is Schulman et al. 2017, eq. 7. Clipped around a policy one version older,
        as the plain surrogate would be, successive versions drift apart. Ratios are each agent's own; those of a joint policy are
        the product over its members.
        """
        config, known = self.config, minibatch["known"].to(minibatch["target"].dtype)
        log_prob, entropy = self.act(minibatch)
        log_ratio = (log_prob - minibatch["proximal_log_prob"]) * known
        weight = ((minibatch["proximal_log_prob"] - minibatch["log_prob"]) * known).exp().clamp_max(config.max_weight)
        ratio, advantage = log_ratio.exp(), weight * minibatch["advantage"] * minibatch.get("factor", 1.0)
        clipped = ratio.clamp(1 - config.clip, 1 + config.clip)
        policy_loss = -torch.minimum(ratio * advantage, clipped * advantage)
        value = self.value(minibatch)
        value_loss = (value - minibatch["target"]) ** 2
        if config.value_clip is not None:
            near = minibatch["old_value"] + (value - minibatch["old_value"]).clamp(-config.value_clip, config.value_clip)
            value_loss = torch.maximum(value_loss, (near - minibatch["target"]) ** 2)
        loss = ((policy_loss - config.entropy * entropy + config.value_weight * value_loss) * known).sum()
        with torch.no_grad():
            kept = {
                "count": known, "policy": policy_loss * known, "value": value_loss * known, "entropy": entropy * known,
                "kl": (ratio - 1 - log_ratio) * known, "clipped": ((ratio - 1).abs() > config.clip) * known,
            }  # fmt: skip
            sums = {name: x.sum() for name, x in kept.items()}
            sums["ratio_deviation"] = torch.cat(
                [(((log_prob - minibatch["log_prob"]) * known).exp() - 1).abs().flatten(), known.new_zeros(1)]
            ).max()
            return loss, sums

    def summarize(self, sums: Tensor) -> dict[str, float]:
        """Means over a batch's epochs from the sums of its minibatches [M, len(SUMS)], by name."""
        total = dict(zip(SUMS, sums.sum(0).tolist(), strict=True))
        means = {f"loss/{name}": total[name] / max(total["count"], 1) for name in ("policy", "value", "entropy", "kl", "clipped")}
        # the policy that acted is still the one that learns here: with rollout.max_lag=0 every ratio is 1 up to rounding
        return {**means, "loss/first_ratio_deviation": float(sums[0, SUMS.index("ratio_deviation")])}
