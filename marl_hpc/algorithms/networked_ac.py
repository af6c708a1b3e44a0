"""Networked actor-critic (Zhang, Yang, Liu, Zhang and Başar 2018): agents who see the state and what all do, but know their own rewards
only, earn the most on average together, by averaging critics with their neighbors.

The task goes on for ever and what counts is the long-run average of all agents' rewards, so nothing is discounted. The paper takes a step
after every transition; here one step a batch takes the mean of as many as it has, and critics are mixed after it (`topology.mix=critic`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from marl_hpc.actors import Actor, build_policies
from marl_hpc.algorithms import Batch, NetworkConfig, check_network, network_options
from marl_hpc.algorithms.actor_critic import fields, memory_of
from marl_hpc.config import ConfigError
from marl_hpc.distributions import Categorical
from marl_hpc.keyed_random import INITIALIZATION, integer
from marl_hpc.networks import FlatParameters, StackedNetwork
from marl_hpc.types import ActionSpace, Exchange, InterfaceSpec

MEANS = ("policy", "value", "reward_model", "entropy", "average_reward")
SUMS = ("count", *MEANS)


@dataclass(frozen=True, kw_only=True)
class NetworkedACConfig(NetworkConfig):
    version: int = (
        2  # the paper's algorithm 1 (critics are Q of the state and all actions) or 2 (V, and a model of the mean reward)
    )
    lr: float = 3e-3  # of policies, the slow time scale
    critic_lr: float = 1e-2  # of critics, the fast one
    # step sizes fall with the number t of the step as t^-exponent; the paper's are 0.85 and 0.65, 0: constant
    lr_exponent: float = 0.0
    critic_lr_exponent: float = 0.0
    average_rate: float = 0.01  # step size of the estimates of average rewards
    entropy: float = 0.0
    max_grad_norm: float = 10.0


class NetworkedAC:
    """T time, B copies, n agents here of N in all, A choices each. Critics see the state [T, B, S] and the joint action as N one-hots."""

    Config = NetworkedACConfig
    networked = True
    critic_sees = "state"
    joint_action = True  # rows say what all agents did
    sums = SUMS
    trained: int | None = None
    priorities = None

    def __init__(
        self, config: NetworkedACConfig, interface: InterfaceSpec, exchange: Exchange, *, device: Any, dtype: torch.dtype, seed: int
    ) -> None:
        self.config, self.interface, self.exchange = config, interface, exchange
        (self.group,) = interface.groups
        seeds = (integer(seed, INITIALIZATION, i) for i in range(1 << 30))
        network = self.network(config, interface)
        self.policies = build_policies(interface.policies, network, seeds)
        everything = interface.state_size + interface.joint_actions * self.group.action_space.size
        sees = {1: {"q": everything}, 2: {"value": interface.state_size, "reward": everything}}[config.version]
        self.critics = {name: self.critic(size, network, next(seeds)) for name, size in sees.items()}
        self.parameters = FlatParameters(
            [*self.policies.values(), *self.critics.values()], device=device, dtype=dtype, slots=len(SUMS)
        )
        self.average = torch.zeros(len(self.group.agents), device=device, dtype=dtype)  # each agent's own reward, never shared

    def critic(self, size: int, network: dict[str, Any], seed: int) -> StackedNetwork:
        view = replace(self.group, observation_shape=(size,), action_mask=False, action_space=ActionSpace(kind="discrete", n=1))
        return StackedNetwork(view, 1, network, 1.0, seed)

    @classmethod
    def network(cls, config: NetworkedACConfig, interface: InterfaceSpec) -> dict[str, Any]:
        return network_options(config, interface)

    @staticmethod
    def exploration(config: Any, env_steps: int) -> float:
        return 0.0

    @staticmethod
    def replay(config: Any, interface: InterfaceSpec) -> None:
        return None

    @classmethod
    def check(cls, config: NetworkedACConfig, interface: InterfaceSpec, fragment: int) -> None:
        check_network(config, interface, fragment)
        if not interface.stacked:
            raise ConfigError(
                f"algorithm=networked_ac needs paradigm=networked; got paradigm={interface.paradigm}: use algorithm=a2c there"
            )
        if config.version not in (1, 2):
            raise ConfigError(f"algorithm.version={config.version} is not a choice; 1 or 2, as the paper counts")
        for key in ("lr", "critic_lr", "max_grad_norm"):
            if not getattr(config, key) > 0:
                raise ConfigError(f"algorithm.{key}={getattr(config, key)} must be greater than 0")
        for key in ("lr_exponent", "critic_lr_exponent", "average_rate"):
            if not 0 <= getattr(config, key) <= 1:
                raise ConfigError(f"algorithm.{key}={getattr(config, key)} must lie between 0 and 1")
        if config.gru:
            raise ConfigError(
                f"algorithm.gru={config.gru}: agents of algorithm=networked_ac see the state and need no memory; leave it out"
            )
        if interface.mix == "all":
            raise ConfigError(
                "topology.mix=all with algorithm=networked_ac: policies stay agents' own (Zhang et al. 2018); set topology.mix=critic"
            )
        for group in interface.groups:
            if group.action_space.kind != "discrete":
                raise ConfigError(
                    f"algorithm=networked_ac compares an agent's choices, but {group.name!r} acts in {group.action_space.kind}; use "
                    "algorithm=a2c"
                )
        if config.version == 1 and fragment < 2:
            raise ConfigError(f"rollout.fragment={fragment}: algorithm.version=1 learns from pairs of steps; make it 2 or more")

    def parts(self) -> list[tuple[slice, float]]:
        cut = sum(self.parameters.sizes[: len(self.policies)])
        return [(slice(0, cut), self.config.lr), (slice(cut, None), self.config.critic_lr)]

    def annealing(self, part: int, updates: int, env_steps: int) -> float:
        """See `AgentInterface.annealing`."""
        exponent = (self.config.lr_exponent, self.config.critic_lr_exponent)[part]
        return (updates + 1) ** -exponent

    def minibatches(self, batch: Batch, columns: Tensor, total: int, seed: int, env_steps: int) -> Iterator[Batch]:
        """See `Algorithm.minibatches`: the whole batch, with what critics and actors learn towards."""
        name = self.group.name
        group = fields(batch, name)
        done = (group["terminated"] | group["truncated"]).any(-1, True)
        joint = nn.functional.one_hot(batch["joint_action"], self.group.action_space.size).to(batch["state"].dtype)
        known = group["active"].clone()
        with torch.no_grad():
            if self.config.version == 1:
                known[:-1] &= ~done[:-1]
                known[-1] = False  # what would be done next isn't here
                q = self.say("q", batch["state"], joint)
                after = torch.cat([q[1:], q[:1]])
                target = group["reward"] - self.average + after
                advantage = q - self.baseline(batch, group, joint)
            else:
                after = self.say("value", batch["next_state"]).masked_fill(group["terminated"], 0)
                value = self.say("value", batch["state"])
                target = group["reward"] - self.average + after
                advantage = self.say("reward", batch["state"], joint) - self.average + after - value
        yield {**batch, "joint": joint, "target": target, "advantage": advantage, "known": known}
        count = known.sum((0, 1))
        mean = (group["reward"] * known).sum((0, 1)) / count.clamp_min(1)
        rate = self.config.average_rate * (count > 0)
        self.average += rate * (mean - self.average)

    def baseline(self, batch: Batch, group: Batch, joint: Tensor) -> Tensor:
        """Σ over an agent's own choices of π(choice) Q(s, choice, the others' actions): [T, B, n]."""
        policy = cast(Actor, self.policies[next(iter(self.policies))])
        chance = policy.parameters_of({policy.group.name: group}, memory_of(batch, ""), batch["first"])[policy.group.name].exp()
        places = self.places.to(joint.device)
        total = torch.zeros_like(chance[..., 0])
        for choice in range(chance.shape[-1]):
            changed = joint.unsqueeze(-3).repeat(*[1] * (joint.dim() - 2), len(places), 1, 1)  # [T, B, n, N, A]
            own = torch.arange(len(places))
            changed[..., own, places, :] = 0
            changed[..., own, places, choice] = 1
            total += chance[..., choice] * self.say("q", batch["state"], changed)
        return total

    @property
    def places(self) -> Tensor:
        """[n]: this rank's agents among all."""
        return torch.as_tensor(self.exchange.agents)  # type: ignore[attr-defined]

    def say(self, critic: str, state: Tensor, joint: Tensor | None = None) -> Tensor:
        """A critic's numbers [T, B, n] by the state [T, B, S] and the joint action [T, B, N, A], or each agent's version of it [T, B, n, N, A]."""
        n = len(self.group.agents)
        parts = [state.unsqueeze(-2).expand(*state.shape[:-1], n, state.shape[-1])]
        if joint is not None:
            flat = joint.flatten(-2)
            parts.append(flat if flat.dim() == parts[0].dim() else flat.unsqueeze(-2).expand(*flat.shape[:-1], n, flat.shape[-1]))
        return self.critics[critic](torch.cat(parts, -1)).squeeze(-1)

    def loss(self, minibatch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Policy gradient (eq. 3.4 for version 1, with the TD error of algorithm 2 for the other) and squared errors whose gradients are the
        local steps of critics, summed over samples."""
        known = minibatch["known"].to(minibatch["target"].dtype)
        name, policy = next(iter(self.policies.items()))
        group = fields(minibatch, name)
        parameters = policy.parameters_of({name: group}, memory_of(minibatch, ""), minibatch["first"])[name]
        distribution = cast(Categorical, policy.distributions[name])
        policy_loss = -distribution.log_prob(parameters, group["action"]) * minibatch["advantage"]
        entropy = distribution.entropy(parameters)
        if self.config.version == 1:
            value_loss = 0.5 * (self.say("q", minibatch["state"], minibatch["joint"]) - minibatch["target"]) ** 2
            model_loss = torch.zeros_like(value_loss)
        else:
            value_loss = 0.5 * (self.say("value", minibatch["state"]) - minibatch["target"]) ** 2
            model_loss = 0.5 * (self.say("reward", minibatch["state"], minibatch["joint"]) - group["reward"]) ** 2
        loss = ((policy_loss - self.config.entropy * entropy + value_loss + model_loss) * known).sum()
        with torch.no_grad():
            kept = {
                "count": torch.ones_like(known), "policy": policy_loss, "value": value_loss, "reward_model": model_loss,
                "entropy": entropy, "average_reward": self.average.expand_as(known),
            }  # fmt: skip
            return loss, {key: (x * known).sum() for key, x in kept.items()}

    def summarize(self, sums: Tensor) -> dict[str, float]:
        total = dict(zip(SUMS, sums.sum(0).tolist(), strict=True))
        return {f"loss/{name}": total[name] / max(total["count"], 1) for name in MEANS if math.isfinite(total[name])}

    def stepped(self, updates: int) -> None:
        pass

    def state(self) -> dict[str, Tensor]:
        return {"average": self.average}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.average.copy_(state["average"])
