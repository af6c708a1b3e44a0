"""Networked actor-critic: agents with private rewards who together want the highest average of all of them in the long run, and tell
graph neighbors nothing but their critics' parameters. Algorithms 1 and 2 of Zhang, Yang, Liu, Zhang & Basar 2018 (ICML).

Critics see the state and the joint action, policies what their agent observes. Each agent takes a TD(0) step on its own reward; mixing
(topology.mix=critic) makes of all of them a critic of the average reward. Rewards aren't discounted: values are relative to μ, the
average reward. T time, B copies, n agents of this rank, N of all, S numbers of state, A choices of each agent.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from marl_hpc.actors import build_policies
from marl_hpc.algorithms import Batch, NetworkConfig, check_network, network_options
from marl_hpc.config import ConfigError
from marl_hpc.keyed_random import INITIALIZATION, integer
from marl_hpc.networks import FlatParameters, StackedNetwork
from marl_hpc.types import ActionSpace, Exchange, GroupSpec, InterfaceSpec

CRITICS = ("action_value", "state_value")
FEATURES = ("pairs", "table", "beside")
LARGEST_TABLE = 10**6  # features
MEANS = ("policy", "value", "reward_model")
SUMS = ("count", *MEANS)


@dataclass(frozen=True, kw_only=True)
class NetworkedACConfig(NetworkConfig):
    hidden: list[int] = field(default_factory=list)  # of policies; none: linear in observations, tabular where those are one-hot
    optimizer: str = "sgd"
    # action_value: algorithm 1, Q(s, a), advantages over the agent's own choices | state_value: algorithm 2, V(s), and R(s, a), a model
    # of the average reward that advantages are made with
    critic: str = "action_value"
    # What critics make of the state s, as the environment gives it, and the joint action a: pairs, s times each agent's choice, and s |
    # table, s times the joint action | beside, s and each agent's choice, for networks. A linear critic over `pairs` can say all that
    # the gradient of linear policies over s needs (compatible features: Konda & Tsitsiklis 2000)
    features: str = "pairs"
    critic_hidden: list[int] = field(default_factory=list)  # of critics and reward models; none: linear in the features
    # step t of an actor is lr / t^exponent, of a critic critic_lr / t^critic_exponent: the critic has to be the faster one.
    # Gradients are means over samples, so what a tabular policy does in one state moves by as little as the state is rare: then lr is a
    # large number
    lr: float = 1.0
    lr_exponent: float = 0.85
    critic_lr: float = 1.0
    critic_lr_exponent: float = 0.65
    average_lr: float = 1.0  # of μ, annealed as the critic's
    steps: int = 1  # gradient steps of a batch, each from that share of its time
    max_grad_norm: float = math.inf  # of an agent's whole gradient; the paper's isn't clipped


class NetworkedAC:
    """See the module. The paper's agents step after every transition; here a step is the mean over a batch [T, B], or over each of
    `steps` pieces of it in the order of time. With rollout.envs=1 and as many steps as the fragment has these are the paper's, but that
    agents act by the policies of the fragment's start.

    Its task goes on forever. Where an episode is cut off, Q has nobody's next action to learn from and V takes the state that was
    reached; one that terminates goes on in the first state of the next. An agent that leaves while others play on learns nothing until
    it is back: its μ and its critic are of the time in which it acts, and others' critics see it choose by what its policy says of an
    observation of zeros. Samples aren't corrected for the version that collected them:
    rollout.max_lag=0 collects with the present one.
    """

    Config = NetworkedACConfig
    networked = True
    critic_sees, sees_joint_actions = "state", True
    sums = SUMS
    trained: int | None = None
    priorities = None

    def __init__(
        self, config: NetworkedACConfig, interface: InterfaceSpec, exchange: Exchange, *, device: Any, dtype: torch.dtype, seed: int
    ) -> None:
        self.config, self.interface, self.exchange = config, interface, exchange
        (self.group,) = interface.groups
        seeds = (integer(seed, INITIALIZATION, i) for i in range(1 << 30))
        self.policies = build_policies(interface.policies, self.network(config, interface), seeds)
        size = features_size(config.features, interface)
        if config.critic == "action_value":
            self.critics: list[nn.Module] = [self.build_critic(size, next(seeds))]
        else:
            self.critics = [self.build_critic(interface.state_size, next(seeds)), self.build_critic(size, next(seeds))]
        self.parameters = FlatParameters([*self.policies.values(), *self.critics], device=device, dtype=dtype, slots=len(SUMS))
        places = torch.tensor([interface.joint_agents.index(agent) for agent in interface.agents])
        self.own = (
            nn.functional.one_hot(places, len(interface.joint_agents)).to(device=device, dtype=dtype).unsqueeze(-1)
        )  # [n, N, 1]
        self.average = torch.zeros(len(interface.agents), device=device, dtype=dtype)  # μ [n]: nobody is told
        self.updates = 0

    def build_critic(self, size: int, seed: int) -> StackedNetwork:
        network = {**network_options(self.config, self.interface), "hidden": list(self.config.critic_hidden)}
        view = GroupSpec(
            name="critic", agents=self.group.agents, observation_shape=(size,), action_space=ActionSpace(kind="discrete", n=1)
        )
        return StackedNetwork(view, 1, network, 0.01, seed)  # small: values start near 0

    @classmethod
    def network(cls, config: NetworkedACConfig, interface: InterfaceSpec) -> dict[str, Any]:
        return network_options(config, interface)

    @staticmethod
    def exploration(config: NetworkedACConfig, env_steps: int) -> float:
        return 0.0

    @staticmethod
    def replay(config: NetworkedACConfig, interface: InterfaceSpec) -> None:
        return None

    @classmethod
    def check(cls, config: NetworkedACConfig, interface: InterfaceSpec, fragment: int) -> None:
        if not interface.stacked:
            raise ConfigError(
                f"algorithm=networked_ac needs paradigm=networked; got paradigm={interface.paradigm}: choose that, or use algorithm=a2c "
                "or ppo"
            )
        if interface.mix == "all":
            raise ConfigError(
                "algorithm=networked_ac mixes critics, policies stay each agent's own: topology.mix must be critic or none, got all"
            )
        if config.messages != "none":
            raise ConfigError(
                f"algorithm=networked_ac tells neighbors nothing but critics' parameters; got algorithm.messages={config.messages}: leave it out, "
                "or use algorithm=a2c or ppo with algorithm.gru"
            )
        if config.gru:
            raise ConfigError(f"algorithm=networked_ac has policies without a memory; got algorithm.gru={config.gru}: leave it out")
        check_network(config, interface, fragment, linear=True)
        if interface.turns > 1:
            raise ConfigError(
                "algorithm=networked_ac learns from joint actions: its agents act at once, and this environment's take turns"
            )
        for group in interface.groups:
            if group.action_space.kind != "discrete":
                raise ConfigError(
                    f"algorithm=networked_ac sums over an agent's choices, which must be discrete; agents of {group.name!r} have "
                    f"{group.action_space.kind} actions: use algorithm=a2c or ppo"
                )
        if not interface.state_size:
            raise ConfigError("algorithm=networked_ac has critics over the state, and this environment's state is empty")
        check_options(config, fragment)
        if features_size(config.features, interface) > LARGEST_TABLE:
            raise ConfigError(
                f"algorithm.features={config.features} of {interface.state_size} numbers of state and {len(interface.joint_agents)} agents "
                f"would be more than {LARGEST_TABLE:,}; choose features=pairs or beside"
            )

    def minibatches(self, batch: Batch, columns: Tensor, total: int, seed: int, env_steps: int) -> Iterator[Batch]:
        """A batch with what follows each transition, `steps` pieces of it in the order of time. See `Algorithm.minibatches`."""
        batch = self.with_successors(batch)
        for piece in zip(*(x.chunk(self.config.steps) for x in batch.values()), strict=True):
            minibatch = dict(zip(batch, piece, strict=True))
            yield minibatch
            # the gradient step is taken, with μ as it was before
            known, reward = minibatch["known"], minibatch[f"{self.group.name}/reward"]
            mean = (reward * known).sum((0, 1)) / known.sum((0, 1)).clamp_min(1)
            rate = self.config.average_lr * self.updates**-self.config.critic_lr_exponent
            self.average += rate * (mean - self.average) * known.any(0).any(0)

    def with_successors(self, batch: Batch) -> Batch:
        """Add `next_joint_action` [T, B, N], and `known` [T, B, n]: transitions that can be learned from."""
        name = self.group.name
        cut = batch["cut"]
        restarts = batch["over"] & ~cut
        after = {key: torch.cat([batch[key][1:], batch[key][-1:]]) for key in ("state", "joint_action")}
        if self.config.critic == "action_value":
            follows = ~cut
            follows[-1] = False  # the next action is in the next batch
        else:
            follows = torch.ones_like(cut)
            follows[-1] = ~restarts[-1]
        return {
            **batch,
            "next_state": torch.where(restarts.unsqueeze(-1), after["state"], batch["next_state"]),
            "next_joint_action": after["joint_action"],
            "known": batch[f"{name}/active"] & follows.unsqueeze(-1),
        }

    def loss(self, minibatch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Half the squared TD error, its target held fixed, half the reward model's squared error, and minus the log-probability of
        actions times their advantage. Gradients are minus the steps of algorithms 1 and 2, before mixing."""
        name = self.group.name
        reward, known = minibatch[f"{name}/reward"], minibatch["known"]
        policy = self.policies[next(iter(self.policies))]
        inputs = {name: {key.removeprefix(f"{name}/"): x for key, x in minibatch.items() if key.startswith(f"{name}/")}}
        log_probs = policy.parameters_of(inputs, reward.new_zeros(0), minibatch["first"])[name]
        action = inputs[name]["action"]
        log_prob = policy.distributions[name].log_prob(log_probs, action)
        model_loss = torch.zeros_like(reward)
        if self.config.critic == "action_value":
            value = self.action_value(self.critics[0], minibatch["state"], minibatch["joint_action"])
            with torch.no_grad():
                next_value = self.action_value(self.critics[0], minibatch["next_state"], minibatch["next_joint_action"])
                choices = self.choice_values(minibatch["state"], minibatch["joint_action"])
                advantage = value - (log_probs.exp() * choices).sum(-1)
        else:
            value = self.state_value(minibatch["state"])
            model = self.action_value(self.critics[1], minibatch["state"], minibatch["joint_action"])
            model_loss = (model - reward) ** 2 / 2
            with torch.no_grad():
                next_value = self.state_value(minibatch["next_state"])
                advantage = model - self.average + next_value - value
        target = (reward - self.average + next_value).detach()
        losses = {"policy": -log_prob * advantage.detach(), "value": (value - target) ** 2 / 2, "reward_model": model_loss}
        summed = {key: (x * known).sum() for key, x in losses.items()}
        sums = {"count": known.sum(), **{key: x.detach() for key, x in summed.items()}}
        return sum(summed.values(), reward.new_zeros(())), sums

    def state_value(self, state: Tensor) -> Tensor:
        """V(s; v_i) [..., n] of states [..., S]."""
        return self.critics[0](state.unsqueeze(-2).expand(*state.shape[:-1], len(self.average), -1)).squeeze(-1)

    def action_value(self, critic: nn.Module, state: Tensor, joint_action: Tensor) -> Tensor:
        """What critics say [..., n] of states [..., S] and joint actions [..., N]: Q(s, a; w_i) or R(s, a; λ_i)."""
        seen = features(self.config.features, state, self.one_hot(joint_action, state)).unsqueeze(-2)
        return critic(seen.expand(*seen.shape[:-2], len(self.average), -1)).squeeze(-1)

    def choice_values(self, state: Tensor, joint_action: Tensor) -> Tensor:
        """Q(s, a_i', a_-i; w_i) [..., n, A] of each choice a_i' of agent i while the others do what they did."""
        others = self.one_hot(joint_action, state).unsqueeze(-3) * (1 - self.own)
        values = []
        for choice in torch.eye(self.group.action_space.n, dtype=state.dtype, device=state.device):
            seen = features(self.config.features, state.unsqueeze(-2), others + self.own * choice)
            values.append(self.critics[0](seen).squeeze(-1))
        return torch.stack(values, -1)

    def one_hot(self, joint_action: Tensor, like: Tensor) -> Tensor:
        return nn.functional.one_hot(joint_action, self.group.action_space.n).to(like.dtype)

    def stepped(self, updates: int) -> None:
        self.updates = updates

    def parts(self) -> list[tuple[slice, float]]:
        actors = sum(self.parameters.sizes[: len(self.policies)])
        return [(slice(0, actors), self.config.lr), (slice(actors, None), self.config.critic_lr)]

    def annealing(self, part: int, updates: int, env_steps: int) -> float:
        """1 / t^exponent of actors or of critics, t from 1; see `AgentInterface.annealing`."""
        return (updates + 1) ** -(self.config.lr_exponent, self.config.critic_lr_exponent)[part]

    def summarize(self, sums: Tensor) -> dict[str, float]:
        total = dict(zip(SUMS, sums.sum(0).tolist(), strict=True))
        means = {f"loss/{name}": total[name] / max(total["count"], 1) for name in MEANS}
        if self.config.critic == "action_value":
            del means["loss/reward_model"]
        return {**means, "average_reward/estimate": float(self.average.mean())}

    def state(self) -> dict[str, Tensor]:
        return {"average": self.average, "updates": torch.tensor(self.updates)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.average.copy_(state["average"])
        self.updates = int(state["updates"])


def features(kind: str, state: Tensor, chosen: Tensor) -> Tensor:
    """Features [..., K] of states [..., S] and joint actions as one-hots [..., N, A].

    `pairs`: S numbers, and S for each choice of each agent, 0 but for what was chosen. `table`: S for each joint action, agent 0's
    changing slowest. `beside`: the state, then the one-hots.

    >>> state, chosen = torch.tensor([2.0, 3.0]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> features("pairs", state, chosen).tolist()
    [2.0, 3.0, 2.0, 3.0, 0.0, 0.0, 0.0, 0.0, 2.0, 3.0]
    >>> features("table", state, chosen).tolist()
    [0.0, 0.0, 2.0, 3.0, 0.0, 0.0, 0.0, 0.0]
    >>> features("beside", state, chosen).tolist()
    [2.0, 3.0, 1.0, 0.0, 0.0, 1.0]
    """
    if kind == "table":
        code = chosen[..., 0, :]
        for i in range(1, chosen.shape[-2]):
            code = (code.unsqueeze(-1) * chosen[..., i, None, :]).flatten(-2)
    else:
        code = chosen.flatten(-2)
    state = state.expand(*code.shape[:-1], state.shape[-1])
    if kind == "beside":
        return torch.cat([state, code], -1)
    product = (code.unsqueeze(-1) * state.unsqueeze(-2)).flatten(-2)
    return product if kind == "table" else torch.cat([state, product], -1)


def features_size(kind: str, interface: InterfaceSpec) -> int:
    """K of `features`."""
    agents, choices, state = len(interface.joint_agents), interface.groups[0].action_space.n, interface.state_size
    return {"pairs": state * (1 + agents * choices), "table": state * choices**agents, "beside": state + agents * choices}[kind]


def check_options(config: NetworkedACConfig, fragment: int) -> None:
    for key, known in (("critic", CRITICS), ("features", FEATURES)):
        if getattr(config, key) not in known:
            raise ConfigError(f"algorithm.{key}={getattr(config, key)!r} is not a choice; {', '.join(known)}")
    if config.critic_hidden and min(config.critic_hidden) < 1:
        raise ConfigError(
            f"algorithm.critic_hidden={list(config.critic_hidden)} must be sizes of 1 or more, or [] for linear critics"
        )
    for key in ("lr", "critic_lr", "max_grad_norm"):
        if not getattr(config, key) > 0:
            raise ConfigError(f"algorithm.{key}={getattr(config, key)} must be greater than 0")
    if not 0 < config.average_lr <= 1:
        raise ConfigError(f"algorithm.average_lr={config.average_lr} must be greater than 0 and at most 1")
    if not 0 <= config.critic_lr_exponent <= config.lr_exponent <= 1:
        raise ConfigError(
            f"algorithm.critic_lr_exponent={config.critic_lr_exponent} and lr_exponent={config.lr_exponent} must be from 0 to 1, the "
            "critic's not the larger one: its steps must not vanish before the actor's"
        )
    if config.steps < 1 or fragment % config.steps:
        raise ConfigError(
            f"rollout.fragment={fragment} must be a multiple of algorithm.steps={config.steps}, gradient steps of a batch"
        )
    if config.critic == "action_value" and fragment < 2:
        raise ConfigError(
            f"rollout.fragment={fragment}: algorithm.critic=action_value learns from the next joint action, so it takes 2 or more"
        )
