"""Policies as networks: what rollout workers act with and learners train.

Three kinds, used alike. An `Actor` plays one group, each agent by what it sees itself; a `CommunicatingActor`, by what its neighbors tell
it too. A `JointActor` plays all groups of a team by what all of them see: *factored* (agents' actions independent given that) or
*autoregressive* (each agent knows the actions of those before it), which can represent any correlated play.

B copies, N agents, T time; fields by group, as in `Inputs`. Pure torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from marl_hpc.distributions import Categorical, Gaussian, distribution_of
from marl_hpc.messages import CommunicatingNetwork
from marl_hpc.networks import AgentNetwork, StackedNetwork, mlp, network_of
from marl_hpc.types import ActionSpace, GroupSpec

# group -> fields [..., N, …]: observation, active, action_mask where the group has masks, action where it is known
Inputs = Mapping[str, Mapping[str, Tensor]]


class _Policy(nn.Module):
    groups: tuple[GroupSpec, ...]
    memory_shape: tuple[int, int]  # [rows, H] of each copy; H is 0 without a memory
    together = False  # acts for all its agents at once, never for one alone

    def __init__(self, groups: Sequence[GroupSpec], network: Mapping[str, Any]) -> None:
        super().__init__()
        self.groups = tuple(groups)
        self.head, self.stacked = network.get("head", "stochastic"), bool(network.get("stacked", False))
        self.distributions = {g.name: distribution_of(g.action_space, self.head) for g in groups}
        self.epsilon = 0.0  # the least probability of acting uniformly at random, for those that explore so
        self.log_std: dict[str, nn.Parameter] = {}
        self.start = float(network.get("log_std", -0.5))
        for i, g in enumerate(groups):
            if g.action_space.kind == "box" and self.head in ("stochastic", "bounded") and not self.stacked:
                # learned, or DDPG's fixed noise
                free = nn.Parameter(torch.full((g.action_space.size,), self.start))
                free.requires_grad = self.head == "stochastic"
                self.log_std[g.name] = free
                self.register_parameter(f"log_std_{i}", free)  # by number: a group may have any name

    def settle(self, group: GroupSpec, outputs: Tensor, mask: Tensor | None) -> Tensor:
        """Distribution parameters from network outputs, exploration included."""
        distribution = self.distributions[group.name]
        if isinstance(distribution, Gaussian):
            if self.stacked:  # each agent's own, beside what its network says
                outputs, log_std = outputs.split([distribution.outputs, group.action_space.size], -1)
                return distribution.parameters(outputs, mask, log_std + self.start)
            return distribution.parameters(outputs, mask, self.log_std.get(group.name))
        if self.head == "values":
            return explore(distribution, greedy(distribution, outputs, mask), mask, self.epsilon)
        return explore(distribution, distribution.parameters(outputs, mask), mask, self.epsilon)


class Actor(_Policy):
    """One group's policy. Box actions live in [-1, 1] per dimension here; `networks.to_env` stretches them to the space's limits."""

    def __init__(self, group: GroupSpec, network: Mapping[str, Any], seed: int) -> None:
        super().__init__((group,), network)
        self.group = group
        gain = 1.0 if self.head == "values" else 0.01
        self.dueling = bool(network.get("dueling", False)) and self.head == "values"
        outputs = self.distributions[group.name].outputs + (1 if self.dueling else 0)
        free = group.action_space.size if group.action_space.kind == "box" and self.stacked else 0
        self.network = self.build(outputs, network, gain, seed, free)
        self.memory_shape = (len(group.agents), self.network.units)

    def build(self, outputs: int, network: Mapping[str, Any], gain: float, seed: int, free: int) -> AgentNetwork | StackedNetwork:
        return network_of(self.group, outputs, network, gain, seed, free=free)

    def act(
        self, inputs: Inputs, memory: Tensor, noise: Mapping[str, Tensor] | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
        """(actions, their log-probabilities [B, N], memory after) of one step; the most likely actions without noise."""
        fields, name = inputs[self.group.name], self.group.name
        outputs, after = self.network.step(fields["observation"], memory)
        parameters = self.settle(self.group, self.duel(outputs), fields.get("action_mask"))
        if self.network.units:
            after = torch.where(fields["active"].unsqueeze(-1), self.remember(after, parameters), memory)
        distribution = self.distributions[name]
        action = distribution.mode(parameters) if noise is None else distribution.sample(parameters, noise[name])
        return {name: action}, {name: distribution.log_prob(parameters, action)}, after

    def remember(self, after: Tensor, parameters: Tensor) -> Tensor:
        """The memory of a step, from the network's [..., N, H] and what the policy said [..., N, P]."""
        return after

    def unroll(self, fields: Mapping[str, Tensor], memory: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
        """What the network says [T, B, N, A] over a sequence of the group's fields, Q-values where the head is `values`; and the memory
        after each step [T, B, N, H]."""
        outputs, after = self.network.unroll(fields["observation"], memory, first, fields["active"])
        return self.duel(outputs), after

    def values_of(self, observation: Tensor, memory: Tensor) -> Tensor:
        """What the network says [..., N, A] of single observations, from the memory [..., N, H] before them."""
        return self.duel(self.network.step(observation, memory)[0])

    def duel(self, outputs: Tensor) -> Tensor:
        """Wang et al. 2016, eq. 9: a value and the choices' advantages to Q-values."""
        if not self.dueling:
            return outputs
        advantage = outputs[..., 1:]
        return outputs[..., :1] + advantage - advantage.mean(-1, keepdim=True)

    def parameters_of(self, inputs: Inputs, memory: Tensor, first: Tensor) -> dict[str, Tensor]:
        """Distribution parameters [T, B, N, P] over a sequence, by group."""
        outputs = self.unroll(inputs[self.group.name], memory, first)[0]
        return {self.group.name: self.settle(self.group, outputs, inputs[self.group.name].get("action_mask"))}


class CommunicatingActor(Actor):
    """One group's policy whose agents talk to their neighbors, see `marl_hpc.messages`. A memory holds an agent's hidden state and, where
    neighbors hear it, the fingerprint of its policy of the step before: the probabilities of choices, or a Gaussian's parameters."""

    network: CommunicatingNetwork
    together = True

    def build(self, outputs: int, network: Mapping[str, Any], gain: float, seed: int, free: int) -> CommunicatingNetwork:
        space = self.group.action_space
        said = 2 * space.size if space.kind == "box" else space.size
        return CommunicatingNetwork(self.group, outputs, network, gain, seed, free=free, fingerprint=said)

    def __init__(self, group: GroupSpec, network: Mapping[str, Any], seed: int) -> None:
        super().__init__(group, network, seed)
        self.memory_shape = (len(group.agents), self.network.units + self.network.fingerprint)

    def remember(self, after: Tensor, parameters: Tensor) -> Tensor:
        return torch.cat([after, self.describe(parameters)], -1) if self.network.fingerprint else after

    def describe(self, parameters: Tensor) -> Tensor:
        """Fingerprints [..., N, F] of what the policy said."""
        return parameters.exp() if isinstance(self.distributions[self.group.name], Categorical) else parameters

    def unroll(self, fields: Mapping[str, Tensor], memory: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
        mask = fields.get("action_mask")

        def describe(t: int, outputs: Tensor) -> Tensor:
            return self.describe(self.settle(self.group, outputs, None if mask is None else mask[t]))

        return self.network.unroll(fields["observation"], memory, first, fields["active"], describe=describe)


class AverageActor(Actor):
    """One group's policy of two: an average one, by probabilities, and a best response, by Q-values (see `algorithms.nfsp`). Agents act by
    the average one but where the inputs' field `best_response` [..., N] says otherwise; `epsilon` is the best response's."""

    def __init__(self, group: GroupSpec, network: Mapping[str, Any], seed: int) -> None:
        super().__init__(group, network, seed)
        self.response = Actor(group, {**network, "head": "values", "dueling": network.get("response_dueling", False)}, seed + 1)

    def act(
        self, inputs: Inputs, memory: Tensor, noise: Mapping[str, Tensor] | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
        epsilon, self.epsilon = self.epsilon, 0.0
        actions, log_probs, memory = super().act(inputs, memory, noise)
        self.epsilon = epsilon
        name = self.group.name
        responds = inputs[name].get("best_response")
        if responds is not None and responds.any():
            self.response.epsilon = epsilon
            best, best_log_probs, _ = self.response.act(inputs, memory, noise)
            wide = responds.reshape(*responds.shape, *[1] * (actions[name].dim() - responds.dim()))
            actions[name] = torch.where(wide, best[name], actions[name])
            log_probs[name] = torch.where(responds, best_log_probs[name], log_probs[name])
        return actions, log_probs, memory

    def average(self, observation: Tensor, mask: Tensor | None) -> Tensor:
        """Parameters [S, N, P] of the average policy."""
        outputs, _ = self.network.step(observation, observation.new_zeros(len(observation), *self.memory_shape))
        return self.settle(self.group, outputs, mask)


class JointActor(_Policy):
    """A team's one policy over the joint observation and joint action.

    All members' observations go through one trunk; a head then gives each agent's distribution in the order of the groups. In the
    autoregressive form it also sees the actions chosen before; agents that don't act count as having chosen nothing.
    """

    together = True

    def __init__(self, groups: Sequence[GroupSpec], network: Mapping[str, Any], seed: int) -> None:
        super().__init__(groups, network)
        self.autoregressive = bool(network.get("autoregressive", False))
        self.members = [(g, i) for g in groups for i in range(len(g.agents))]
        self.widest = max(self.distributions[g.name].outputs for g in groups)
        self.encoded = [g.action_space.size for g, _ in self.members]
        hidden, activation = list(network["hidden"]), network["activation"]
        observed = sum(len(g.agents) * math.prod(g.observation_shape) for g in groups)
        joint = GroupSpec(
            name="joint", agents=("joint",), observation_shape=(observed,), action_space=ActionSpace(kind="discrete", n=1)
        )
        self.trunk = AgentNetwork(joint, hidden[-1], network, math.sqrt(2), seed)
        self.memory_shape = (1, self.trunk.units)
        size = hidden[-1] + len(self.members) + (sum(self.encoded) if self.autoregressive else 0)
        generator = torch.Generator().manual_seed(seed + 1)
        self.body = mlp([size, hidden[-1], self.widest], activation, 0.01, generator)

    def act(
        self, inputs: Inputs, memory: Tensor, noise: Mapping[str, Tensor] | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
        """As `Actor.act`, for all groups. The memory [B, 1, H] is the team's."""
        joint = self.joint(inputs)
        features, after = self.trunk.step(joint, memory)
        before = joint.new_zeros(*joint.shape[:-2], sum(self.encoded))
        actions: dict[str, list[Tensor]] = {g.name: [] for g in self.groups}
        log_probs: dict[str, list[Tensor]] = {g.name: [] for g in self.groups}
        for place, (group, i) in enumerate(self.members):
            parameters = self.member(inputs, features.squeeze(-2), before, place)
            distribution = self.distributions[group.name]
            action = distribution.mode(parameters)
            if noise is not None:
                action = distribution.sample(parameters, noise[group.name][..., i, :])
            actions[group.name].append(action)
            log_probs[group.name].append(distribution.log_prob(parameters, action))
            start = sum(self.encoded[:place])
            chosen = self.encode(group, action, before.dtype) * inputs[group.name]["active"][..., i, None]
            before = torch.cat([before[..., :start], chosen, before[..., start + chosen.shape[-1] :]], -1)
        return (
            {name: torch.stack(parts, before.dim() - 1) for name, parts in actions.items()},
            {name: torch.stack(parts, -1) for name, parts in log_probs.items()},
            after,
        )

    def parameters_of(self, inputs: Inputs, memory: Tensor, first: Tensor) -> dict[str, Tensor]:
        """Distribution parameters over a sequence, each agent's given the actions of those before it."""
        joint = self.joint(inputs)
        active = torch.ones(*joint.shape[:-1], dtype=torch.bool, device=joint.device)
        features = self.trunk.unroll(joint, memory, first, active)[0].squeeze(-2)
        encoded = [
            self.encode(g, inputs[g.name]["action"].select(2, i), joint.dtype) * inputs[g.name]["active"][..., i, None]
            for g, i in self.members
        ]
        parameters: dict[str, list[Tensor]] = {g.name: [] for g in self.groups}
        for place, (group, _) in enumerate(self.members):
            later = joint.new_zeros(*joint.shape[:-2], sum(self.encoded[place:]))
            parameters[group.name].append(self.member(inputs, features, torch.cat([*encoded[:place], later], -1), place))
        return {name: torch.stack(parts, -2) for name, parts in parameters.items()}

    def joint(self, inputs: Inputs) -> Tensor:
        """All members' observations [..., 1, D]."""
        lead = inputs[self.groups[0].name]["active"].dim() - 1
        return torch.cat([inputs[g.name]["observation"].flatten(lead) for g in self.groups], -1).unsqueeze(-2)

    def member(self, inputs: Inputs, features: Tensor, before: Tensor, place: int) -> Tensor:
        """One member's distribution parameters [..., P]."""
        group, i = self.members[place]
        identity = torch.zeros(len(self.members), dtype=features.dtype, device=features.device)
        identity[place] = 1
        parts = [features, identity.expand(*features.shape[:-1], -1)] + ([before] if self.autoregressive else [])
        outputs = self.body(torch.cat(parts, -1))[..., : self.distributions[group.name].outputs]
        mask = inputs[group.name].get("action_mask")
        return self.settle(group, outputs, None if mask is None else mask[..., i, :])

    def encode(self, group: GroupSpec, action: Tensor, dtype: torch.dtype) -> Tensor:
        distribution = self.distributions[group.name]
        return distribution.one_hot(action, dtype) if isinstance(distribution, Categorical) else action


PolicyNetwork = Actor | JointActor


def build_policies(
    policies: Mapping[str, Sequence[GroupSpec]], network: Mapping[str, Any], seeds: Iterator[int]
) -> dict[str, PolicyNetwork]:
    """One policy network each, as `InterfaceSpec.policies` names them."""
    return {name: build_policy(groups, network, next(seeds)) for name, groups in policies.items()}


def build_policy(groups: Sequence[GroupSpec], network: Mapping[str, Any], seed: int = 0) -> PolicyNetwork:
    if network.get("joint", False):
        return JointActor(groups, network, seed)
    if network.get("messages", "none") != "none":
        return CommunicatingActor(groups[0], network, seed)
    if network.get("average", False):
        return AverageActor(groups[0], network, seed)
    return Actor(groups[0], network, seed)


def legal(distribution: Categorical, like: Tensor, mask: Tensor | None) -> Tensor:
    return torch.ones_like(like, dtype=torch.bool) if mask is None else mask


def greedy(distribution: Categorical, values: Tensor, mask: Tensor | None) -> Tensor:
    """Log-probabilities of always taking the choice of the highest value."""
    values = values.masked_fill(~legal(distribution, values, mask), torch.finfo(values.dtype).min)
    best = distribution.one_hot(distribution.best(values), values.dtype)
    return torch.zeros_like(values).masked_fill(best == 0, torch.finfo(values.dtype).min)


def explore(distribution: Categorical, log_probs: Tensor, mask: Tensor | None, epsilon: float) -> Tensor:
    """Log-probabilities of acting uniformly over the legal choices with probability epsilon."""
    if epsilon == 0:
        return log_probs
    uniform = []
    for part in legal(distribution, log_probs, mask).split(distribution.choices, -1):
        part = part.to(log_probs)
        uniform.append(part / part.sum(-1, keepdim=True).clamp_min(1))
    mixed = (1 - epsilon) * log_probs.exp() + epsilon * torch.cat(uniform, -1)
    limits = torch.finfo(log_probs.dtype)
    return mixed.clamp_min(limits.tiny).log().masked_fill(~legal(distribution, log_probs, mask), limits.min)
