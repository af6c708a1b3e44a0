"""Proximal policy optimization (Schulman et al. 2017), each group of agents with a critic over its own observations: IPPO
(de Witt et al. 2020).

Read top to bottom: advantages for a whole batch, then epochs of global minibatches, then the clipped losses of one minibatch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from marl_hpc.algorithms import Batch
from marl_hpc.config import ConfigError
from marl_hpc.keyed_random import INITIALIZATION, MINIBATCH, generator, integer
from marl_hpc.networks import ACTIVATIONS, Actor, AgentNetwork, FlatParameters
from marl_hpc.returns import ValueNormalizer, gae
from marl_hpc.types import Exchange, GroupSpec


@dataclass(frozen=True, kw_only=True)
class PPOConfig:
    gamma: float = 0.99
    gae_lambda: float = 0.95
    clip: float = 0.2
    max_weight: float = 2.0  # truncates importance weights of samples that an older version collected
    value_clip: float | None = 0.2  # in units of the normalized value; none: no clipping
    entropy: float = 0.01
    value_weight: float = 0.5
    epochs: int = 8
    minibatches: int = 4
    lr: float = 7e-4
    adam_eps: float = 1e-5
    max_grad_norm: float = 10.0
    normalize_advantages: bool = True
    normalize_values: bool = True
    agent_id: bool = True  # a one-hot of the agent beside its observation, where a group has several
    hidden: list[int] = field(default_factory=lambda: [64, 64])
    activation: str = "tanh"


# What travels behind the gradient, in this order. kl is Schulman's estimator k3 (joschu.net, 2020); ratio_deviation is the
# largest one of a replica, so its sum over replicas bounds the largest of all.
SUMS = ("count", "policy", "value", "entropy", "kl", "clipped", "ratio_deviation")


class PPO:
    Config = PPOConfig
    sums = SUMS

    def __init__(
        self, config: PPOConfig, group: GroupSpec, exchange: Exchange, *, device: Any, dtype: torch.dtype, seed: int
    ) -> None:
        self.config = config
        self.exchange = exchange
        seeds = [integer(seed, INITIALIZATION, i) for i in range(2)]
        self.actor = Actor(group, config.hidden, config.activation, config.agent_id, seeds[0])
        self.critic = AgentNetwork(group, 1, config.hidden, config.activation, config.agent_id, 1.0, seeds[1])
        self.parameters = FlatParameters([self.actor, self.critic], device=device, dtype=dtype, slots=len(SUMS))
        self.values = ValueNormalizer()

    @staticmethod
    def check(config: PPOConfig, group: GroupSpec) -> None:
        if config.activation not in ACTIVATIONS:
            raise ConfigError(f"algorithm.activation={config.activation!r}; choose one of: {', '.join(ACTIVATIONS)}")
        for key in ("epochs", "minibatches", "lr", "clip", "max_weight", "max_grad_norm"):
            if not getattr(config, key) > 0:
                raise ConfigError(f"algorithm.{key}={getattr(config, key)} must be greater than 0")
        if len(group.observation_shape) > 1:
            raise ConfigError(
                f"group {group.name!r} observes arrays of shape {group.observation_shape}; algorithm=ppo takes vectors: "
                "flatten the observation in the environment"
            )

    def minibatches(self, batch: Batch, columns: Tensor, total: int, seed: int) -> Iterator[Batch]:
        """See `Algorithm.minibatches`. A sample is one step of one copy with all N agents."""
        batch = self.with_advantages(batch)
        steps, copies = batch["reward"].shape[:2]
        flat = {name: x.flatten(0, 1) for name, x in batch.items()}
        place = np.full(steps * total, -1)  # global sample -> row of this replica, or -1
        place.reshape(steps, total)[:, columns.cpu().numpy()] = np.arange(steps * copies).reshape(steps, copies)
        for epoch in range(self.config.epochs):
            order = place[generator(seed, MINIBATCH, epoch).permutation(len(place))]
            for part in np.array_split(order, self.config.minibatches):
                rows = torch.from_numpy(part[part >= 0]).to(flat["reward"].device)
                yield {name: x[rows] for name, x in flat.items()}

    def with_advantages(self, batch: Batch) -> Batch:
        """Add value targets and advantages to a batch [T, B, N]; statistics run over all replicas."""
        active = batch["active"]
        with torch.no_grad():
            critic = self.critic(batch["observation"]).squeeze(-1)
            values = self.values.denormalize(critic)
            # within an episode the next value is the next row's; only ends of episodes and of the fragment need another pass
            next_values = torch.cat([values[1:], values[-1:]])
            done = batch["terminated"] | batch["truncated"]
            ends = done.any(-1)
            ends[-1] = True
            final = self.critic(batch["next_observation"][ends]).squeeze(-1)
            next_values[ends] = self.values.denormalize(final)
            advantages = gae(
                batch["reward"], values, next_values, batch["terminated"], done, gamma=self.config.gamma, lam=self.config.gae_lambda
            )
            returns = advantages + values
            moments = torch.stack([_moments(returns, active), _moments(advantages, active)])
            self.exchange.sum_(moments)
            if self.config.normalize_values:
                self.values.update(moments[0].cpu())
            if self.config.normalize_advantages:
                count, total, squares = moments[1]
                count = count.clamp_min(1)
                mean = total / count
                std = (squares / count - mean * mean).clamp_min(0).sqrt()
                advantages = (advantages - mean.to(advantages)) / (std.to(advantages) + 1e-8)
            # the policy that learning starts from; with lag it isn't the one that acted any more
            parameters = self.actor(batch["observation"], batch.get("action_mask"))
            return {
                **batch,
                "proximal_log_prob": self.actor.log_prob(parameters, batch["action"]),
                "advantage": advantages,
                "target": self.values.normalize(returns),
                "old_value": critic,  # as the critic said it: clipping is about its output, whatever the statistics are now
            }

    def loss(self, minibatch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Clipped surrogate minus entropy bonus plus clipped value loss, summed over samples.

        The surrogate is the decoupled one of Hilton et al. 2022 (eq. 4): clipped around the policy that this batch's learning
        starts from, weighted by that policy's probability over the one that acted, truncated at `max_weight`. Without lag both
        are the same policy, the weight is 1, and it is Schulman et al. 2017, eq. 7. Clipped around a policy one version older,
        as the plain surrogate would be, successive versions drift apart.
        """
        config, active = self.config, minibatch["active"].to(minibatch["reward"].dtype)
        parameters = self.actor(minibatch["observation"], minibatch.get("action_mask"))
        log_prob = self.actor.log_prob(parameters, minibatch["action"])
        log_ratio = log_prob - minibatch["proximal_log_prob"]
        weight = (minibatch["proximal_log_prob"] - minibatch["log_prob"]).exp().clamp_max(config.max_weight)
        ratio, advantage = log_ratio.exp(), weight * minibatch["advantage"]
        clipped = ratio.clamp(1 - config.clip, 1 + config.clip)
        policy_loss = -torch.minimum(ratio * advantage, clipped * advantage)
        entropy = self.actor.entropy(parameters)
        value = self.critic(minibatch["observation"]).squeeze(-1)
        value_loss = (value - minibatch["target"]) ** 2
        if config.value_clip is not None:
            near = minibatch["old_value"] + (value - minibatch["old_value"]).clamp(-config.value_clip, config.value_clip)
            value_loss = torch.maximum(value_loss, (near - minibatch["target"]) ** 2)
        loss = ((policy_loss - config.entropy * entropy + config.value_weight * value_loss) * active).sum()
        with torch.no_grad():
            kept = {
                "count": active, "policy": policy_loss * active, "value": value_loss * active, "entropy": entropy * active,
                "kl": (ratio - 1 - log_ratio) * active, "clipped": ((ratio - 1).abs() > config.clip) * active,
            }  # fmt: skip
            sums = {name: x.sum() for name, x in kept.items()}
            sums["ratio_deviation"] = torch.cat(
                [(((log_prob - minibatch["log_prob"]).exp() - 1).abs() * active).flatten(), active.new_zeros(1)]
            ).max()
            return loss, sums

    def summarize(self, sums: Tensor) -> dict[str, float]:
        """Means over a batch's epochs from the sums of its minibatches [M, len(SUMS)], by name."""
        total = dict(zip(SUMS, sums.sum(0).tolist(), strict=True))
        means = {f"loss/{name}": total[name] / max(total["count"], 1) for name in ("policy", "value", "entropy", "kl", "clipped")}
        # the policy that acted is still the one that learns here: with rollout.max_lag=0 every ratio is 1 up to rounding
        return {**means, "loss/first_ratio_deviation": float(sums[0, SUMS.index("ratio_deviation")])}

    def state(self) -> dict[str, Tensor]:
        return {"value_moments": self.values.moments}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.values.moments = state["value_moments"].clone()


def _moments(x: Tensor, active: Tensor) -> Tensor:
    """(count, sum, sum of squares) over active entries, in float64 so that the order of summation hardly matters."""
    x, weight = x.double(), active.double()
    return torch.stack([weight.sum(), (x * weight).sum(), (x * x * weight).sum()])
