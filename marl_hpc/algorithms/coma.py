"""Counterfactual multi-agent policy gradients (Foerster et al. 2018): a critic over all agents' actions tells each agent what its own
action added, against what it would have done on average while the others do what they did.

Policies act uniformly at random with probability epsilon, and this floor is inside the probabilities that the gradient uses.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from marl_hpc.actors import Actor
from marl_hpc.algorithms import Batch, annealed, check_epsilon
from marl_hpc.algorithms.actor_critic import ActorCritic, ActorCriticConfig, fields, memory_of, moments_of
from marl_hpc.config import ConfigError
from marl_hpc.critics import ActionCritic
from marl_hpc.distributions import Categorical
from marl_hpc.keyed_random import integer
from marl_hpc.networks import Targets
from marl_hpc.returns import gae
from marl_hpc.types import Exchange, InterfaceSpec


@dataclass(frozen=True, kw_only=True)
class COMAConfig(ActorCriticConfig):
    gae_lambda: float = 0.8  # of the critic's TD(lambda) targets
    critic_lr: float = 1e-3
    critic_steps: int = 8  # of the critic for each one of the policies
    target_every: int = 200  # critic steps between two moves of the target critic
    target_tau: float = 1.0  # share of the critic that the target takes over
    epsilon_start: float = 0.5  # the share of uniformly random actions, falling linearly …
    epsilon_end: float = 0.02
    epsilon_steps: int = 50_000  # … over so many environment steps
    normalize_advantages: bool = False


class COMA(ActorCritic):
    Config = COMAConfig
    sums = ("count", "policy", "value", "entropy", "importance_weight", "truncated_weights", "ratio_deviation")

    def __init__(
        self, config: COMAConfig, interface: InterfaceSpec, exchange: Exchange, *, device: Any, dtype: torch.dtype, seed: int
    ) -> None:
        super().__init__(config, interface, exchange, device=device, dtype=dtype, seed=seed)
        self.targets = Targets([self.critic])
        self.target = cast(ActionCritic, self.targets.copies[0])
        self.critic_updates = 0

    def build_critic(self, network: dict[str, Any], seeds: Iterator[int]) -> ActionCritic:
        return ActionCritic(self.interface, {**network, "gru": 0}, seeds, shared=False)

    @staticmethod
    def exploration(config: COMAConfig, env_steps: int) -> float:
        return annealed(config, env_steps)

    @classmethod
    def check(cls, config: COMAConfig, interface: InterfaceSpec, fragment: int) -> None:
        super().check(config, interface, fragment)
        if interface.critic_sees != "state":
            raise ConfigError(f"algorithm=coma needs paradigm=ctde; got paradigm={interface.paradigm}: use algorithm=a2c there")
        if interface.team_reward == "individual":
            raise ConfigError("algorithm=coma judges actions by the team's reward: team_reward must be mean or sum")
        check_epsilon(config)
        for key in ("critic_lr", "critic_steps", "target_every", "target_tau"):
            if not getattr(config, key) > 0:
                raise ConfigError(f"algorithm.{key}={getattr(config, key)} must be greater than 0")
        if config.correction == "vtrace":
            raise ConfigError(
                "algorithm.correction=vtrace corrects values of states, and the critic of algorithm=coma values actions: use "
                "algorithm.correction=truncated, or algorithm=ppo, a2c or happo"
            )
        if config.critic != "separate":
            raise ConfigError("algorithm=coma has one critic a group: algorithm.critic must be separate")
        for group in interface.groups:
            if group.action_space.kind != "discrete":
                raise ConfigError(
                    f"algorithm=coma averages over an agent's choices, but group {group.name!r} acts in a {group.action_space.kind} "
                    "space; use algorithm=ppo"
                )

    def parts(self) -> list[tuple[slice, float]]:
        """Policies, and the critic."""
        policies = sum(self.parameters.sizes[:-1])
        return [(slice(0, policies), self.config.lr), (slice(policies, None), self.config.critic_lr)]

    def minibatches(self, batch: Batch, columns: Tensor, total: int, seed: int, env_steps: int) -> Iterator[Batch]:
        """The critic's steps, each over the whole batch, then one of the policies."""
        for policy in self.policies.values():
            policy.epsilon = self.exploration(self.config, env_steps)
        for step in range(self.config.critic_steps):
            batch = self.with_targets(batch, first=step == 0)
            self.trained = 1
            yield from self.parts_of(batch, columns, total, integer(seed, step))
        self.trained = 0
        yield from self.parts_of(self.with_counterfactuals(batch), columns, total, seed)

    @torch.no_grad()
    def with_targets(self, batch: Batch, first: bool) -> Batch:
        """Add TD(lambda) targets of the actions that were taken, from the target critic; statistics run over all replicas."""
        q = self.taken(self.target(batch, self.chosen(batch)), batch)
        values = self.values.denormalize(q)
        terminated, truncated = self.together(batch, "terminated"), self.together(batch, "truncated")
        done = terminated | truncated
        ends = done.any(-1)
        ends[-1] = True
        next_values = torch.zeros_like(values)
        next_values[ends] = self.values.denormalize(self.expected_after(batch, ends))
        advantages, known = gae(
            self.together(batch, "reward"), values, next_values, terminated, done, gamma=self.config.gamma, lam=self.config.gae_lambda,
            active=self.together(batch, "active"), continues=self.together(batch, "next_active")[-1],
        )  # fmt: skip
        targets = advantages + values
        if first and self.config.normalize_values:
            moments = moments_of(targets, known)
            self.exchange.sum_(moments)
            self.values.update(moments.cpu())
        return {**batch, "known": known, "target": self.values.normalize(targets)}

    def expected_after(self, batch: Batch, ends: Tensor) -> Tensor:
        """Target values [E, N] of what the actions of some steps led to, where no action was taken yet: over each agent's own policy,
        the others doing what they most likely would."""
        outputs, modes = {}, {}
        for name, policy in self.policies.items():
            actor = cast(Actor, policy)
            own = fields(batch, actor.group.name)
            after = actor.unroll(own, memory_of(self.at_start(batch), name), batch["first"])[1]
            mask = own["next_action_mask"][ends] if "next_action_mask" in own else None
            parameters = actor.settle(actor.group, actor.values_of(own["next_observation"][ends], after[ends]), mask)
            outputs[actor.group.name] = parameters.exp()
            modes[actor.group.name] = self.one_hot(actor.group.name, parameters.argmax(-1))
        ended = {name: x[ends] for name, x in batch.items() if not name.endswith("/memory")}
        for name in self.names:  # who is cut off acts no more but would have
            ended[f"{name}/next_active"] = ended[f"{name}/next_active"] | ended[f"{name}/truncated"]
        q = self.target(ended, modes, "next_")
        return torch.cat([(outputs[name] * q[name]).sum(-1) for name in self.names], -1)

    @torch.no_grad()
    def with_counterfactuals(self, batch: Batch) -> Batch:
        """Add each agent's advantage: Q of what it did, less the mean over what it might have done (Foerster et al. 2018, eq. 4)."""
        q = self.critic(batch, self.chosen(batch))
        start = self.at_start(batch)
        baselines = []
        for name, policy in self.policies.items():
            group = cast(Actor, policy).group
            parameters = policy.parameters_of({group.name: fields(batch, group.name)}, memory_of(start, name), batch["first"])
            baselines.append((parameters[group.name].exp() * q[group.name]).sum(-1))
        advantage = self.taken(q, batch) - torch.cat(baselines, -1)
        extended = {**batch, "advantage": advantage * batch["known"], "log_prob": self.together(batch, "log_prob")}
        if self.config.normalize_advantages:
            moments = moments_of(extended["advantage"], batch["known"])
            self.exchange.sum_(moments)
            extended["advantage"] = extended["advantage"] / (moments[2] / moments[0].clamp_min(1)).sqrt().clamp_min(1e-8).to(
                advantage
            )
        return {**extended, "proximal_log_prob": self.act(start)[0]}

    def loss(self, minibatch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The critic's squared errors, or the policy gradient minus entropy bonus, summed over samples; importance weights of samples
        that an older version collected are truncated as `correction` says."""
        known = minibatch["known"].to(minibatch["target"].dtype)
        nothing = dict.fromkeys(self.sums, known.new_zeros(()))
        if self.trained == 1:
            error = (self.taken(self.critic(minibatch, self.chosen(minibatch)), minibatch) - minibatch["target"]) * known
            return (error**2).sum(), {**nothing, "count": known.sum(), "value": (error**2).sum().detach()}
        log_prob, entropy = self.act(minibatch)
        ratio, weight = self.weigh(minibatch, known)
        policy_loss = -log_prob * weight * minibatch["advantage"] * known
        entropy = entropy * known
        kept = {"count": known, "policy": policy_loss, "entropy": entropy}
        sums = {name: x.detach().sum() for name, x in kept.items()} | self.weight_sums(minibatch, known)
        sums["ratio_deviation"] = torch.cat([(ratio - 1).abs().flatten(), known.new_zeros(1)]).max()
        return (policy_loss - self.config.entropy * entropy).sum(), {**nothing, **sums}

    def chosen(self, batch: Batch) -> dict[str, Tensor]:
        """The actions of a batch [..., N, A], one-hot."""
        return {name: self.one_hot(name, batch[f"{name}/action"]) for name in self.names}

    def one_hot(self, group: str, action: Tensor) -> Tensor:
        return cast(Categorical, self.policies[group].distributions[group]).one_hot(action, self.parameters.values.dtype)

    def taken(self, q: dict[str, Tensor], batch: Batch) -> Tensor:
        """Of each agent's Q [..., N, A], that of the action which it took, side by side."""
        distributions = {g: cast(Categorical, d) for policy in self.policies.values() for g, d in policy.distributions.items()}
        return torch.cat([distributions[name].chosen(q[name], batch[f"{name}/action"]) for name in self.names], -1)

    def stepped(self, updates: int) -> None:
        if self.trained == 1:
            self.critic_updates += 1
            if self.critic_updates % self.config.target_every == 0:
                self.targets.follow(self.config.target_tau)

    def summarize(self, sums: Tensor) -> dict[str, float]:
        critic, policy = sums[:-1].sum(0), dict(zip(self.sums, sums[-1].tolist(), strict=True))
        count = max(policy["count"], 1)
        value = critic[self.sums.index("value")] / critic[self.sums.index("count")].clamp_min(1)
        means = {f"loss/{name}": policy[name] / count for name in ("policy", "entropy", "importance_weight", "truncated_weights")}
        return {**means, "loss/value": float(value), "loss/first_ratio_deviation": policy["ratio_deviation"]}

    def state(self) -> dict[str, Tensor]:
        return {**super().state(), "target": self.targets.state(), "critic_updates": torch.tensor(self.critic_updates)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        super().load_state(state)
        self.targets.load_state(state["target"])
        self.critic_updates = int(state["critic_updates"])
