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
MEANS = ("policy", "value", "entropy", "kl", "clipped", "importance_weight", "truncated_weights")
SUMS = ("count", *MEANS, "ratio_deviation")


class PPO(ActorCritic):
    Config = PPOConfig
    networked = True
    sums = SUMS

    def __init__(
        self, config: PPOConfig, interface: InterfaceSpec, exchange: Exchange, *, device: Any, dtype: torch.dtype, seed: int
    ) -> None:
        super().__init__(config, interface, exchange, device=device, dtype=dtype, seed=seed)
        self.epochs, self.splits = config.epochs, config.minibatches

    @classmethod
    def check(cls, config: PPOConfig, interface: InterfaceSpec, fragment: int) -> None:
        super().check(config, interface, fragment)
        for key in ("epochs", "minibatches", "clip"):
            if not getattr(config, key) > 0:
                raise ConfigError(f"algorithm.{key}={getattr(config, key)} must be greater than 0")

    def loss(self, minibatch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Clipped surrogate minus entropy bonus plus clipped value loss, summed over samples.

        The surrogate is the decoupled one of Hilton et al. 2022 (eq. 4): clipped around the policy that this batch's learning
        starts from, weighted by that policy's probability over the one that acted, truncated as `correction` says. Without lag both
        are the same policy, the weight is 1, and it is Schulman et al. 2017, eq. 7. Clipped around a policy one version older,
        as the plain surrogate would be, successive versions drift apart. Ratios are each agent's own; those of a joint policy are
        the product over its members.

        With `correction=vtrace` the weight is V-trace's factor ρ of the policy gradient (Espeholt et al. 2018, section 4.2), truncated at
        `rho_bar`. It and Hilton's weight are the same ratio, so a sample weighs by it once: the advantages, which V-trace has estimated
        for the policy that learning starts from, come without it.
        """
        config, known = self.config, minibatch["known"].to(minibatch["target"].dtype)
        log_prob, entropy = self.act(minibatch)
        policy_loss, ratio = self.surrogate(minibatch, log_prob, known)
        value_loss = self.value_loss(minibatch)
        loss = ((policy_loss - config.entropy * entropy + config.value_weight * value_loss) * known).sum()
        with torch.no_grad():
            return loss, {
                **self.policy_sums(minibatch, log_prob, policy_loss, ratio, entropy, known),
                "value": (value_loss * known).sum(),
            }

    def surrogate(self, minibatch: Batch, log_prob: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        """(loss of the policy, ratio to the policy that learning starts from), both [L, S, N]."""
        config = self.config
        weight = self.weigh(minibatch, known)[1]
        ratio, advantage = ((log_prob - minibatch["proximal_log_prob"]) * known).exp(), weight * minibatch["advantage"]
        clipped = ratio.clamp(1 - config.clip, 1 + config.clip)
        return -torch.minimum(ratio * advantage, clipped * advantage), ratio

    def value_loss(self, minibatch: Batch) -> Tensor:
        """Squared errors [L, S, N], clipped as `value_clip` says."""
        value, clip = self.value(minibatch), self.config.value_clip
        loss = (value - minibatch["target"]) ** 2
        if clip is not None:
            near = minibatch["old_value"] + (value - minibatch["old_value"]).clamp(-clip, clip)
            loss = torch.maximum(loss, (near - minibatch["target"]) ** 2)
        return loss

    def policy_sums(
        self, minibatch: Batch, log_prob: Tensor, policy_loss: Tensor, ratio: Tensor, entropy: Tensor, known: Tensor
    ) -> dict[str, Tensor]:
        """What metrics tell of the policy, all but `value` of SUMS."""
        kept = {
            "count": known, "policy": policy_loss * known, "entropy": entropy * known, "kl": (ratio - 1 - ratio.log()) * known,
            "clipped": ((ratio - 1).abs() > self.config.clip) * known,
        }  # fmt: skip
        deviation = (((log_prob - minibatch["log_prob"]) * known).exp() - 1).abs().flatten()
        return {
            **{name: x.sum() for name, x in kept.items()},
            **self.weight_sums(minibatch, known),
            "ratio_deviation": torch.cat([deviation, known.new_zeros(1)]).max(),
        }

    def summarize(self, sums: Tensor) -> dict[str, float]:
        """Means over a batch's epochs from the sums of its minibatches [M, len(SUMS)], by name."""
        total = dict(zip(SUMS, sums.sum(0).tolist(), strict=True))
        means = {f"loss/{name}": total[name] / max(total["count"], 1) for name in MEANS}
        # the policy that acted is still the one that learns here: with rollout.max_lag=0 every ratio is 1 up to rounding
        return {**means, "loss/first_ratio_deviation": float(sums[0, SUMS.index("ratio_deviation")])}
