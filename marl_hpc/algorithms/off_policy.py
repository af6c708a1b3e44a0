"""What off-policy algorithms share: sequences drawn from replay, target networks, and targets that run over agents' own turns.

A minibatch has fields [L, S, N, …]: S sequences of L steps. Without a memory L is `n_step` (and one more turn in turn-based play); with
one it is `burn_in` + `chunk`, and the first `burn_in` steps only warm the memory up (Kapturowski et al. 2019).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from marl_hpc.algorithms import Batch, NetworkConfig, check_network, network_options
from marl_hpc.config import ConfigError
from marl_hpc.networks import FlatParameters, Targets
from marl_hpc.returns import gae
from marl_hpc.types import Exchange, InterfaceSpec, ReplayConfig


@dataclass(frozen=True, kw_only=True)
class OffPolicyConfig(NetworkConfig):
    gamma: float = 0.99
    lr: float = 5e-4
    max_grad_norm: float = 10.0
    batch: int = 256  # sequences of one gradient step
    capacity: int = 100_000  # environment steps in the replay tables
    samples_per_insert: float = 8.0  # how many times a step is learned from, on average
    starts: int = 2_000  # environment steps to be collected before learning begins
    reward_scale: float = 1.0  # values are learned of rewards times this: rare small rewards drown in what networks begin with
    # rewards less their mean over what was drawn, by their deviation (as in Papoudakis et al. 2021): mixers whose units saturate, as
    # QMIX's do, don't learn from values that are all far below zero. Where episodes terminate it changes what is best: leave it off there
    standardize_rewards: bool = False
    n_step: int = 1  # returns sum up so many rewards before they bootstrap
    burn_in: int = 0  # steps that only warm a memory up
    target_tau: float = 0.01  # share of the new parameters that the target networks take at each gradient step; 1: see target_every
    target_every: int = 1  # gradient steps between two moves of the target networks
    priority_exponent: float = 0.0  # 0: uniform replay; 0.6 is usual for prioritized replay (Schaul et al. 2016)
    importance_exponent: float = 0.4  # corrects for priorities


class OffPolicy:
    """An off-policy algorithm's common part; `loss` is the algorithm's own, and fills `errors` [S] where priorities are wanted."""

    sums: tuple[str, ...]
    trained: int | None = None

    def __init__(self, config: Any, interface: InterfaceSpec, exchange: Exchange) -> None:
        self.config, self.interface, self.exchange = config, interface, exchange
        self.names = [group.name for group in interface.groups]
        self.priorities: Tensor | None = None
        self.errors: Tensor | None = None

    def hold(self, modules: list[nn.Module], targets: list[nn.Module], *, device: Any, dtype: torch.dtype) -> list[nn.Module]:
        """Put `modules` into the flat buffer, and return target copies of `targets`, some of them."""
        self.parameters = FlatParameters(modules, device=device, dtype=dtype, slots=len(self.sums))
        self.target = Targets(targets)
        return self.target.copies

    @classmethod
    def network(cls, config: Any, interface: InterfaceSpec) -> dict[str, Any]:
        return network_options(config, interface) | {"burn_in": config.burn_in}

    @staticmethod
    def exploration(config: Any, env_steps: int) -> float:
        return 0.0

    @classmethod
    def replay(cls, config: Any, interface: InterfaceSpec) -> ReplayConfig:
        length = config.burn_in + config.chunk if config.gru else config.n_step * interface.turns + (interface.turns > 1)
        return ReplayConfig(
            capacity=config.capacity, batch=config.batch, length=length, stride=config.chunk if config.gru else 1,
            samples_per_insert=config.samples_per_insert, starts=config.starts, priority_exponent=config.priority_exponent,
            importance_exponent=config.importance_exponent,
        )  # fmt: skip

    @classmethod
    def check(cls, config: Any, interface: InterfaceSpec, fragment: int) -> None:
        check_network(config, interface, fragment)
        for key in (
            "lr",
            "max_grad_norm",
            "batch",
            "capacity",
            "samples_per_insert",
            "reward_scale",
            "n_step",
            "target_tau",
            "target_every",
        ):
            if not getattr(config, key) > 0:
                raise ConfigError(f"algorithm.{key}={getattr(config, key)} must be greater than 0")
        for key in ("gamma", "target_tau"):
            if not 0 <= getattr(config, key) <= 1:
                raise ConfigError(f"algorithm.{key}={getattr(config, key)} must lie between 0 and 1")
        if config.standardize_rewards and config.reward_scale != 1:
            raise ConfigError(
                f"algorithm.reward_scale={config.reward_scale} with algorithm.standardize_rewards=true: standardized rewards have a scale; "
                "leave one out"
            )
        if config.gru and config.n_step != 1:
            raise ConfigError(
                f"algorithm.n_step={config.n_step} is for policies without a memory: with algorithm.gru={config.gru} it must be 1"
            )
        if config.burn_in < 0 or (config.burn_in and not config.gru):
            raise ConfigError(
                f"algorithm.burn_in={config.burn_in} warms up a memory: it must be 0 or more, and 0 with algorithm.gru=0"
            )
        length = cls.replay(config, interface).length
        if fragment < length:
            raise ConfigError(
                f"rollout.fragment={fragment} is shorter than a sequence to learn from, {length} steps; make it longer"
            )
        if config.starts > config.capacity:
            raise ConfigError(f"algorithm.starts={config.starts} is more than algorithm.capacity={config.capacity} can hold")

    def minibatches(self, batch: Batch, columns: Tensor, total: int, seed: int, env_steps: int) -> Iterator[Batch]:
        """See `Algorithm.minibatches`: the table has drawn them already."""
        if self.config.standardize_rewards:
            batch = self.standardized(batch)
        errors = []
        for u in range(batch["first"].shape[1]):
            yield {name: x[0, u] if name.endswith("/memory") else x[:, u] for name, x in batch.items()}
            if self.errors is not None:
                errors.append(self.errors)
        self.priorities = torch.stack(errors) if errors and self.config.priority_exponent > 0 else None

    def standardized(self, batch: Batch) -> Batch:
        """Rewards less their mean, by their deviation, over all replicas' batches."""
        x = self.together(batch, "reward").double()
        moments = torch.stack([torch.full_like(x.sum(), x.numel()), x.sum(), (x * x).sum()])
        self.exchange.sum_(moments)
        count, total, squares = moments
        mean = total / count
        std = (squares / count - mean * mean).clamp_min(0).sqrt() + 1e-8
        return {**batch, **{f"{n}/reward": ((batch[f"{n}/reward"] - mean) / std).to(batch[f"{n}/reward"]) for n in self.names}}

    def targets(self, minibatch: Batch, values: Tensor, next_values: Tensor, *, team: bool) -> tuple[Tensor, Tensor]:
        """(what Q should be, where that is known), [L, S, N] or for a team [L, S, 1]: rewards up to an agent's next turn and the value
        there, summed over `n_step` turns; with a memory the bootstrapped one-step target.

        `values` and `next_values` [L, S, N or 1] are the best ones of each step's observation and of what its action led to.
        """
        acting, after = self.together(minibatch, "active"), self.together(minibatch, "next_active")
        reward = self.together(minibatch, "reward") * self.config.reward_scale
        terminated, truncated = self.together(minibatch, "terminated"), self.together(minibatch, "truncated")
        if team:
            over = (terminated | truncated).any(-1, True) & ~after.any(-1, True)
            terminated, acting, reward = over & ~truncated.any(-1, True), acting.any(-1, True), reward[..., :1]
            truncated, after = over & ~terminated, after.any(-1, True)
        lam = 0.0 if self.config.gru or self.config.n_step == 1 else 1.0
        advantages, known = gae(
            reward, values, next_values, terminated, terminated | truncated, gamma=self.config.gamma, lam=lam, active=acting,
            continues=after[-1],
        )  # fmt: skip
        known = known.clone()
        known[: self.config.burn_in if self.config.gru else 0] = False
        return advantages + values, known

    def together(self, batch: Batch, field: str) -> Tensor:
        """A field of all groups' agents side by side."""
        return torch.cat([batch[f"{name}/{field}"] for name in self.names], -1)

    def stepped(self, updates: int) -> None:
        if updates % self.config.target_every == 0:
            self.target.follow(self.config.target_tau)

    def summarize(self, sums: Tensor) -> dict[str, float]:
        total = dict(zip(self.sums, sums.sum(0).tolist(), strict=True))
        return {f"loss/{name}": total[name] / max(total["count"], 1) for name in self.sums if name != "count"}

    def parts(self) -> list[tuple[slice, float]]:
        return [(slice(None), self.config.lr)]

    def state(self) -> dict[str, Tensor]:
        return {"target": self.target.state()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.target.load_state(state["target"])


def priorities(error: Tensor, known: Tensor) -> Tensor:
    """Of each sequence [S]: a mixture of its largest and mean absolute error (Kapturowski et al. 2019, with eta 0.9)."""
    error = error.abs().transpose(0, 1).flatten(1)
    count = known.transpose(0, 1).flatten(1).sum(1).clamp_min(1)
    return 0.9 * error.amax(1) + 0.1 * error.sum(1) / count
