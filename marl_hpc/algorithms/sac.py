"""Soft actor-critic (Haarnoja et al. 2018), each agent by itself or with critics over what all agents see and do.

Twin critics; the temperature of each group's entropy bonus follows a target. Boxes are played by squashed Gaussians. Discrete agents'
critics give Q of every choice, and the expectation over the policy is exact (Christodoulou 2019); with several choices at once Q is a
sum over them, as in `dqn`, so that it still is. In centralized training an agent's critic is asked about what the others' present
policies do, drawn afresh, and only the agent's own entropy counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from marl_hpc.algorithms import Batch
from marl_hpc.algorithms.off_policy import priorities
from marl_hpc.algorithms.off_policy_actor_critic import (
    CRITIC,
    POLICY,
    OffPolicyActorCritic,
    OffPolicyActorCriticConfig,
    check_applies,
    fixed,
)
from marl_hpc.config import ConfigError
from marl_hpc.critics import ActionCritic
from marl_hpc.distributions import Squashed
from marl_hpc.networks import FlatParameters, Targets
from marl_hpc.types import InterfaceSpec

TEMPERATURE = 2  # its place in `parts`


@dataclass(frozen=True, kw_only=True)
class SACConfig(OffPolicyActorCriticConfig):
    alpha: float = 0.2  # the temperature, what a nat of entropy is worth, at the start
    alpha_lr: float = 3e-4  # 0: it stays
    discrete_entropy: float = 0.3  # the entropy that it aims at: a share of that of acting uniformly over the legal choices
    box_entropy: float = -1.0  # … and for each dimension of a box, in nats, with actions between -1 and 1


class Temperature(nn.Module):
    """The logarithm of alpha of each group."""

    def __init__(self, groups: int, alpha: float) -> None:
        super().__init__()
        self.log_alpha = nn.Parameter(torch.tensor(alpha, dtype=torch.float64).log().repeat(groups))


class SAC(OffPolicyActorCritic):
    Config = SACConfig
    sums = ("count", "value", "q", "policy", "entropy", "alpha")
    twins = 2

    def hold_all(self, *, device: Any, dtype: torch.dtype) -> None:
        self.temperature = Temperature(len(self.names), self.config.alpha)
        self.parameters = FlatParameters(
            [*self.policies.values(), *self.critics, self.temperature], device=device, dtype=dtype, slots=len(self.sums)
        )
        self.target = Targets([*self.critics])
        self.passes = (CRITIC, POLICY, TEMPERATURE) if self.config.alpha_lr else (CRITIC, POLICY)

    @classmethod
    def network(cls, config: SACConfig, interface: InterfaceSpec) -> dict[str, Any]:
        return {**super().network(config, interface), "head": "squashed"}

    @classmethod
    def check(cls, config: SACConfig, interface: InterfaceSpec, fragment: int) -> None:
        if interface.joint_policy:
            raise ConfigError(
                f"algorithm=sac trains a policy for each group: it needs paradigm=independent or ctde; got paradigm={interface.paradigm}: "
                "use algorithm=ppo there"
            )
        super().check(config, interface, fragment)
        if not config.alpha > 0:
            raise ConfigError(f"algorithm.alpha={config.alpha} must be greater than 0")
        if not config.alpha_lr >= 0:
            raise ConfigError(f"algorithm.alpha_lr={config.alpha_lr} must be 0 (the temperature stays) or more")
        if not 0 <= config.discrete_entropy <= 1:
            raise ConfigError(f"algorithm.discrete_entropy={config.discrete_entropy} is a share and must lie between 0 and 1")
        check_applies(config, interface, choices=("discrete_entropy",), boxes=("box_entropy",))

    def parts(self) -> list[tuple[slice, float]]:
        """Policies, critics, and temperatures."""
        return [*super().parts(), (slice(-len(self.names), None), self.config.alpha_lr)]

    def loss(self, minibatch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return {CRITIC: self.critic_loss, POLICY: self.policy_loss, TEMPERATURE: self.temperature_loss}[self.trained or 0](
            minibatch
        )

    def critic_loss(self, minibatch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Squared errors of both critics, summed over samples and weighted against their priorities."""
        taken = self.taken(minibatch)
        target, known = self.soft_targets(minibatch, taken)
        loss, errors = target.new_zeros(()), []
        for critic in self.critics:
            q = self.value(critic(minibatch, taken, memory=critic.memories(minibatch, taken)[0]), taken)
            errors.append((q - target) * known)
            loss = loss + (minibatch["weight"].unsqueeze(-1) * errors[-1] ** 2).sum()
        with torch.no_grad():
            self.errors = priorities((errors[0].abs() + errors[1].abs()) / 2, known)
            kept = {"count": known.to(q.dtype), "value": (errors[0] ** 2 + errors[1] ** 2) / 2, "q": q * known}
        return loss, self.filled({name: x.sum() for name, x in kept.items()})

    @torch.no_grad()
    def soft_targets(self, minibatch: Batch, taken: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """(what Q should be, where that is known) [L, S, N]: rewards and, of the target critics, the lower value of what the policies
        would do, with their entropy (Haarnoja et al. 2018, "Applications", eq. 5 and 6)."""
        targets: list[ActionCritic] = self.target.copies  # type: ignore[assignment]
        now, after = self.outputs(minibatch, self.policies)
        memories = [critic.memories(minibatch, taken) for critic in targets]
        alpha = self.temperature.log_alpha.exp()

        def soft(outputs: Mapping[str, Tensor], prefix: str, place: int) -> Tensor:
            value, entropy = self.expected(minibatch, outputs, prefix, targets, [memory[place] for memory in memories])
            return self.joined({name: value[name] + alpha[i] * entropy[name] for i, name in enumerate(self.names)})

        next_values = soft(after, "next_", 1)
        # a single step bootstraps from what it led to alone
        values = soft(now, "", 0) if len(next_values) > 1 else torch.zeros_like(next_values)
        return self.targets(minibatch, values, next_values, team=False)

    def policy_loss(self, minibatch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Minus the soft value of the policies, under the lower of both critics, summed over the samples in which agents act."""
        acting = self.learned(minibatch)
        with torch.no_grad():
            taken = self.taken(minibatch)
            memories = [critic.memories(minibatch, taken)[0] for critic in self.critics]
        outputs = self.outputs(minibatch, self.policies)[0]
        with fixed(self.critics):
            value, entropy = self.expected(minibatch, outputs, "", self.critics, memories)
        alpha = self.temperature.log_alpha.detach().exp()
        soft = self.joined({name: value[name] + alpha[i] * entropy[name] for i, name in enumerate(self.names)})
        loss = -soft * acting
        with torch.no_grad():
            goal = {name: self.target_entropy(minibatch, name) for name in self.names}
            places = acting.split([x.shape[-1] for x in entropy.values()], -1)
            # by how much policies are more random than they should be, for the pass that comes next
            self.excess = torch.stack(
                [((entropy[name] - goal[name]) * own).sum() for name, own in zip(self.names, places, strict=True)]
            )
            self.acted = acting.sum()
            temperature = sum(own.sum() * alpha[i] for i, own in enumerate(places))
            kept = {"count": acting.sum(), "policy": loss.sum(), "entropy": (self.joined(entropy) * acting).sum()}
        return (minibatch["weight"].unsqueeze(-1) * loss).sum(), self.filled({**kept, "alpha": torch.as_tensor(temperature)})

    def temperature_loss(self, minibatch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Lets a temperature fall where the entropy of the pass before was above its target, and rise below it."""
        return (self.temperature.log_alpha * self.excess).sum(), self.filled({"count": self.acted})

    def expected(
        self,
        minibatch: Batch,
        outputs: Mapping[str, Tensor],
        prefix: str,
        critics: Sequence[ActionCritic],
        memories: Sequence[Tensor | None],
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """({group: value}, {group: entropy}) [L, S, N] of what the policies would do: exact over an agent's own choices; for boxes,
        and for what the others do, by a draw."""
        parameters = self.settle(minibatch, outputs, prefix)
        drawn, log_probs = {}, {}
        for name, x in parameters.items():
            distribution, noise = self.distribution(name), minibatch[f"{name}/{prefix}noise"]
            if isinstance(distribution, Squashed):
                drawn[name], log_probs[name] = distribution.draw(x, noise)
            else:
                drawn[name] = self.encode(name, distribution.sample(x, noise))
        others = {name: x.detach() for name, x in drawn.items()}
        q = [critic(minibatch, others, prefix, own=drawn, memory=memory) for critic, memory in zip(critics, memories, strict=True)]
        value, entropy = {}, {}
        for name, x in parameters.items():
            distribution, one, other = self.distribution(name), q[0][name], q[1][name]
            if isinstance(distribution, Squashed):
                value[name], entropy[name] = torch.minimum(one, other).squeeze(-1), -log_probs[name]
                continue
            entropy[name] = distribution.entropy(x)
            if distribution.several:  # how Q is shared out among the parts is each critic's own affair: only sums compare
                value[name] = torch.minimum((x.exp() * one).sum(-1), (x.exp() * other).sum(-1))
            else:
                value[name] = (x.exp() * torch.minimum(one, other)).sum(-1)
        return value, entropy

    def target_entropy(self, minibatch: Batch, group: str) -> Tensor:
        """What the temperature aims at, [..., N] or a number."""
        distribution, values = self.distribution(group), self.parameters.values
        if isinstance(distribution, Squashed):
            return values.new_tensor(self.config.box_entropy * distribution.noise)
        mask = minibatch.get(f"{group}/action_mask", torch.ones(distribution.outputs, dtype=torch.bool, device=values.device))
        legal = torch.stack([part.sum(-1).clamp_min(1) for part in mask.split(distribution.choices, -1)])
        return self.config.discrete_entropy * legal.to(values.dtype).log().sum(0)
