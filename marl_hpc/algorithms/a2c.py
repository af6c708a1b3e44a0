"""Advantage actor-critic, synchronous (Mnih et al. 2016): IA2C under independent learning, MAA2C under centralized training
(Papoudakis et al. 2021), joint A2C under fully centralized learning. One gradient step a batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from marl_hpc.algorithms import Batch
from marl_hpc.algorithms.actor_critic import ActorCritic, ActorCriticConfig

MEANS = ("policy", "value", "entropy", "importance_weight", "truncated_weights")
SUMS = ("count", *MEANS, "ratio_deviation")


@dataclass(frozen=True, kw_only=True)
class A2CConfig(ActorCriticConfig):
    gae_lambda: float = 1.0  # returns up to the fragment's end, as A3C's n-step returns
    normalize_advantages: bool = False


class A2C(ActorCritic):
    Config = A2CConfig
    networked = True
    sums = SUMS

    def loss(self, minibatch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Policy gradient minus entropy bonus plus squared error of the value, summed over samples. Samples of a version before this
        one weigh by the policies' ratio, truncated as `correction` says; with `correction=vtrace` these are the three gradients of
        Espeholt et al. 2018, section 4.2."""
        config, known = self.config, minibatch["known"].to(minibatch["target"].dtype)
        log_prob, entropy = self.act(minibatch)
        ratio, weight = self.weigh(minibatch, known)
        policy_loss = -log_prob * weight * minibatch["advantage"]
        value_loss = (self.value(minibatch) - minibatch["target"]) ** 2
        loss = ((policy_loss - config.entropy * entropy + config.value_weight * value_loss) * known).sum()
        with torch.no_grad():
            kept = {"count": known, "policy": policy_loss * known, "value": value_loss * known, "entropy": entropy * known}
            sums = {name: x.sum() for name, x in kept.items()} | self.weight_sums(minibatch, known)
            sums["ratio_deviation"] = torch.cat([(ratio - 1).abs().flatten(), known.new_zeros(1)]).max()
            return loss, sums

    def summarize(self, sums: Tensor) -> dict[str, float]:
        total = dict(zip(SUMS, sums.sum(0).tolist(), strict=True))
        means = {f"loss/{name}": total[name] / max(total["count"], 1) for name in MEANS}
        return {**means, "loss/first_ratio_deviation": total["ratio_deviation"]}
