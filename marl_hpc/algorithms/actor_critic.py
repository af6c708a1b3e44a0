"""What on-policy algorithms share: policies and critics of an interface, advantages of a batch, and global minibatches of it.

Advantages, log-probabilities and losses run over the agents of all groups side by side, [T, B, N]; for a team that is one policy N is
1: one advantage, and the log-probability of the joint action.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from marl_hpc.actors import build_policies
from marl_hpc.algorithms import Batch, NetworkConfig, check_network, network_options
from marl_hpc.config import ConfigError
from marl_hpc.critics import Critic
from marl_hpc.keyed_random import INITIALIZATION, MINIBATCH, generator, integer
from marl_hpc.messages import LocalMessages, connect
from marl_hpc.networks import FlatParameters
from marl_hpc.returns import ValueNormalizer, gae, vtrace
from marl_hpc.types import Exchange, InterfaceSpec

# what `correction` may be -> the options that bound its weights, first that of the policy's loss
CORRECTIONS: dict[str, tuple[str, ...]] = {"none": (), "truncated": ("max_weight",), "vtrace": ("rho_bar", "c_bar")}
ROUNDING = 1e-4  # a policy's ratio to itself may lie that far from 1: it acted in batches of another shape than it learns in


@dataclass(frozen=True, kw_only=True)
class ActorCriticConfig(NetworkConfig):
    gamma: float = 0.99
    gae_lambda: float = 0.95
    # What is done about samples that an older version collected. Their ratios are those of the policy that a batch's learning starts
    # from over the one that acted: each agent's own, in a team with one critic and one reward too, so that what has changed in the others
    # is not corrected for (ratios of all agents would multiply, and so would their variance); of a joint policy, the product over the
    # members that act, bounded as a whole. none | truncated (samples weigh by their ratios in the policy's loss) | vtrace (that, and
    # value targets and advantages are V-trace's, Espeholt et al. 2018)
    correction: str = "truncated"
    max_weight: float = 2.0  # correction=truncated: the largest weight
    rho_bar: float = (
        1.0  # correction=vtrace: the largest weight, of values too; inf: they are the present policy's, with more variance
    )
    c_bar: float = 1.0  # correction=vtrace: the largest ratio by which later turns count in a value target
    entropy: float = 0.01
    value_weight: float = 0.5
    lr: float = 7e-4
    lr_steps: int = 0  # the learning rate falls linearly to nothing over so many environment steps; 0: it stays
    max_grad_norm: float = 10.0
    normalize_advantages: bool = True
    normalize_values: bool = True
    critic: str = "separate"  # paradigm=ctde: separate (one a group, over the state and own observations) | shared (over the state)


class ActorCritic:
    """An on-policy algorithm's common part; `loss` is the algorithm's own."""

    sums: tuple[str, ...]
    trained: int | None = None
    epochs, splits = 1, 1
    priorities = None
    hops = 1  # of networked agents, how far what one hears comes from

    def __init__(
        self, config: Any, interface: InterfaceSpec, exchange: Exchange, *, device: Any, dtype: torch.dtype, seed: int
    ) -> None:
        self.config, self.interface, self.exchange = config, interface, exchange
        self.names = [group.name for group in interface.groups]
        seeds = (integer(seed, INITIALIZATION, i) for i in range(1 << 30))
        network = self.network(config, interface)
        self.policies = build_policies(interface.policies, network, seeds)
        self.critic = self.build_critic(network, seeds)
        modules = [*self.policies.values(), self.critic]
        self.parameters = FlatParameters(modules, device=device, dtype=dtype, slots=len(self.sums))
        self.values = ValueNormalizer(agents=len(interface.agents) if interface.stacked else None)
        self.critic_memory: Tensor | None = None  # [B, N, H] after the last batch: its copies go on in the next

    @property
    def batch_steps(self) -> int:
        """Gradient steps of a batch."""
        return self.epochs * self.splits

    def build_critic(self, network: dict[str, Any], seeds: Iterator[int]) -> Any:
        return Critic(self.interface, network, seeds, self.config.critic == "shared")

    def connect(self, neighbors: LocalMessages) -> None:
        """Let agents that talk hear their neighbors by this from now on: see `marl_hpc.messages`."""
        for module in [*self.policies.values(), self.critic]:
            connect(module, neighbors)

    @classmethod
    def network(cls, config: Any, interface: InterfaceSpec) -> dict[str, Any]:
        return network_options(config, interface)

    @staticmethod
    def exploration(config: Any, env_steps: int) -> float:
        return 0.0

    @staticmethod
    def replay(config: Any, interface: InterfaceSpec) -> None:
        return None

    @classmethod
    def check(cls, config: Any, interface: InterfaceSpec, fragment: int) -> None:
        check_network(config, interface, fragment)
        for key in ("lr", "max_weight", "rho_bar", "c_bar", "max_grad_norm"):
            if not getattr(config, key) > 0:
                raise ConfigError(f"algorithm.{key}={getattr(config, key)} must be greater than 0")
        if config.lr_steps < 0:
            raise ConfigError(f"algorithm.lr_steps={config.lr_steps} must be 0 (the learning rate stays) or more")
        check_correction(config)
        if config.critic not in ("separate", "shared"):
            raise ConfigError(f"algorithm.critic={config.critic!r} is not a choice; separate or shared")
        if config.critic == "shared" and interface.critic_sees != "state":
            raise ConfigError(f"algorithm.critic=shared needs paradigm=ctde; got paradigm={interface.paradigm}")

    def minibatches(self, batch: Batch, columns: Tensor, total: int, seed: int, env_steps: int) -> Iterator[Batch]:
        """See `Algorithm.minibatches`. A sample is one chunk of steps (one step, where there is no memory) of one copy with all
        agents; fields of a minibatch are [L, S, …] for S chunks of L steps."""
        yield from self.parts_of(self.with_advantages(batch), columns, total, seed)

    def parts_of(self, batch: Batch, columns: Tensor, total: int, seed: int) -> Iterator[Batch]:
        """`epochs` passes over a batch with advantages, each in `splits` global minibatches."""
        samples = self.samples(batch)
        copies = batch["first"].shape[1]
        chunks = len(batch["first"]) // len(samples["first"])
        place = np.full(chunks * total, -1)  # global sample -> this replica's, or -1
        place.reshape(chunks, total)[:, columns.cpu().numpy()] = np.arange(chunks * copies).reshape(chunks, copies)
        for epoch in range(self.epochs):
            order = place[generator(seed, MINIBATCH, epoch).permutation(len(place))]
            for part in np.array_split(order, self.splits):
                rows = torch.from_numpy(part[part >= 0]).to(samples["first"].device)
                yield {name: x[rows] if name.endswith("/memory") else x[:, rows] for name, x in samples.items()}

    def samples(self, batch: Batch) -> Batch:
        """A batch [T, B, …] cut into chunks: [L, C·B, …], and memories [C·B, …] as of their starts."""
        length = self.config.chunk if self.config.gru else 1

        def cut(x: Tensor) -> Tensor:
            return x.reshape(len(x) // length, length, *x.shape[1:]).movedim(1, 0).flatten(1, 2)

        return {name: x.flatten(0, 1) if name.endswith("/memory") else cut(x) for name, x in batch.items()}

    def with_advantages(self, batch: Batch) -> Batch:
        """Add advantages, value targets and the log-probabilities that learning starts from; statistics run over all replicas."""
        joint = self.interface.joint_policy
        acting, after = self.together(batch, "active"), self.together(batch, "next_active")
        reward, terminated = self.together(batch, "reward"), self.together(batch, "terminated")
        truncated = self.together(batch, "truncated")
        continues = after[-1]
        if joint:  # the team acts when a member does, and ends when none goes on
            over = (terminated | truncated).any(-1, True) & ~after.any(-1, True)
            terminated = over & ~truncated.any(-1, True)  # a team goes on where any member would
            acting, reward, truncated, continues = (
                acting.any(-1, True), reward[..., :1], over & ~terminated, continues.any(-1, True),
            )  # fmt: skip
        done = terminated | truncated
        with torch.no_grad():
            critic, memory, starts = self.evaluate(batch)
            values = self.values.denormalize(critic)
            ends = done.any(-1)
            ends[-1] = True
            if self.critic.talks:  # what agents hear is exchanged over ranks, so all ask for the same samples
                ends[:] = True
            next_values = torch.zeros_like(values)
            ended = {name: x[ends] for name, x in batch.items() if not name.endswith("/memory")}
            next_values[ends] = self.values.denormalize(self.critic.after(ended, memory[ends]))
            acted = self.joined(batch, self.together(batch, "log_prob"))
            # the policy that learning starts from; with lag it isn't the one that acted any more
            proximal = self.act(self.at_start(batch))[0]
            given: dict[str, Any] = {
                "gamma": self.config.gamma, "lam": self.config.gae_lambda, "active": acting, "continues": continues,
            }  # fmt: skip
            if self.config.correction == "vtrace":
                targets, advantages, known = vtrace(
                    reward, values, next_values, terminated, done, (proximal - acted).exp(), rho_bar=self.config.rho_bar,
                    c_bar=self.config.c_bar, **given,
                )  # fmt: skip
            else:
                advantages, known = gae(reward, values, next_values, terminated, done, **given)
                targets = advantages + values
            each = self.interface.stacked  # what agents learn from is each one's own
            moments = torch.stack([moments_of(targets, known, each), moments_of(advantages, known, each)])
            self.exchange.sum_(moments)
            if self.config.normalize_values:
                self.values.update(moments[0].cpu())
            if self.config.normalize_advantages:
                count, total, squares = moments[1]
                count = count.clamp_min(1)
                mean = total / count
                std = (squares / count - mean * mean).clamp_min(0).sqrt()
                advantages = (advantages - mean.to(advantages)) / (std.to(advantages) + 1e-8)
            return {
                **batch,
                **starts,
                "reward": reward,
                "log_prob": acted,
                "proximal_log_prob": proximal,
                "known": known,
                "advantage": advantages,
                "target": self.values.normalize(targets),
                "old_value": critic,  # as the critic said it: clipping is about its output, whatever the statistics are now
            }

    def evaluate(self, batch: Batch) -> tuple[Tensor, Tensor, Batch]:
        """(critic outputs [T, B, N], its memory after each step, its memory at each chunk's start), going on from the last batch."""
        before = self.critic_memory
        outputs, memory = self.critic.unroll(batch, before)
        if not self.critic.units:
            return outputs, memory, {}
        before = torch.zeros_like(memory[0]) if before is None else before
        self.critic_memory = memory[-1].clone()
        starts = torch.cat([before[None], memory[:-1]])[:: self.config.chunk]
        return outputs, memory, {"critic/memory": starts}

    def act(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(log-probabilities, entropies) [L, S, N] of the actions in a batch, under the policies as they are now."""
        log_probs, entropies = [], []
        for name, policy in self.policies.items():
            inputs = {group.name: fields(batch, group.name) for group in policy.groups}
            parameters = policy.parameters_of(inputs, memory_of(batch, name), batch["first"])
            for group in policy.groups:
                distribution = policy.distributions[group.name]
                log_probs.append(distribution.log_prob(parameters[group.name], batch[f"{group.name}/action"]))
                entropies.append(distribution.entropy(parameters[group.name]))
        return self.joined(batch, torch.cat(log_probs, -1)), self.joined(batch, torch.cat(entropies, -1))

    def weigh(self, minibatch: Batch, known: Tensor) -> tuple[Tensor, Tensor]:
        """Of each sample [L, S, N]: (its ratio, the weight of its policy loss: the ratio up to the bound that `correction` has, and
        without a correction 1). See ActorCriticConfig for whose ratio it is."""
        ratio = ((minibatch["proximal_log_prob"] - minibatch["log_prob"]) * known).exp()
        bound = self.bound
        return ratio, torch.ones_like(ratio) if bound is None else ratio.clamp_max(bound)

    @property
    def bound(self) -> float | None:
        """The largest weight of a policy loss; None where it doesn't weigh."""
        bounds = CORRECTIONS[self.config.correction]
        return getattr(self.config, bounds[0]) if bounds else None

    def weight_sums(self, minibatch: Batch, known: Tensor) -> dict[str, Tensor]:
        """What metrics tell of the weights, summed over samples. With rho_bar=1 their mean is what μ and π have in common, 1 less the
        total variation between them, but for the randomness of samples."""
        ratio, weight = self.weigh(minibatch, known)
        truncated = torch.zeros_like(known) if self.bound is None else ratio > self.bound * (1 + ROUNDING)
        return {"importance_weight": (weight * known).sum(), "truncated_weights": (truncated * known).sum()}

    def value(self, minibatch: Batch) -> Tensor:
        """Critic outputs [L, S, N], in normalized units."""
        return self.critic.unroll(minibatch, minibatch.get("critic/memory"))[0]

    def joined(self, batch: Batch, x: Tensor) -> Tensor:
        """For a joint policy, the sum over the members that act."""
        return (x * self.together(batch, "active")).sum(-1, True) if self.interface.joint_policy else x

    def together(self, batch: Batch, field: str) -> Tensor:
        """A field of all groups' agents side by side."""
        return torch.cat([batch[f"{name}/{field}"] for name in self.names], -1)

    def at_start(self, batch: Batch) -> Batch:
        """A batch [T, B] as one long chunk: memories as of its first step only."""
        return {name: x[0] if name.endswith("/memory") else x for name, x in batch.items()}

    def annealing(self, part: int, updates: int, env_steps: int) -> float:
        """See `AgentInterface.annealing`."""
        return max(0.0, 1 - env_steps / self.config.lr_steps) if self.config.lr_steps else 1.0

    def stepped(self, updates: int) -> None:
        pass

    def parts(self) -> list[tuple[slice, float]]:
        return [(slice(None), self.config.lr)]

    def state(self) -> dict[str, Tensor]:
        return {"value_moments": self.values.moments}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.values.moments = state["value_moments"].clone()


def check_correction(config: ActorCriticConfig) -> None:
    if config.correction not in CORRECTIONS:
        raise ConfigError(f"algorithm.correction={config.correction!r} is not a choice; {', '.join(CORRECTIONS)}")
    usual = type(config)()
    for correction, keys in CORRECTIONS.items():
        for key in keys:
            if correction != config.correction and getattr(config, key) != getattr(usual, key):
                raise ConfigError(
                    f"algorithm.{key}={getattr(config, key)} is about algorithm.correction={correction}, got "
                    f"algorithm.correction={config.correction}: leave {key} out, or set algorithm.correction={correction}"
                )
    if config.c_bar > config.rho_bar:
        raise ConfigError(
            f"algorithm.c_bar={config.c_bar} must not be greater than algorithm.rho_bar={config.rho_bar} (Espeholt et al. 2018): "
            "lower c_bar or raise rho_bar"
        )


def fields(batch: Batch, group: str) -> Batch:
    """One group's fields, by their own names."""
    prefix = f"{group}/"
    return {name.removeprefix(prefix): x for name, x in batch.items() if name.startswith(prefix)}


def memory_of(batch: Batch, policy: str) -> Tensor:
    """A policy's memory, empty where it has none."""
    return batch.get(f"{policy}/memory", batch["first"].new_zeros(0, dtype=torch.float32))


def moments_of(x: Tensor, known: Tensor, each: bool = False) -> Tensor:
    """(count, sum, sum of squares) over known entries of x [T, B, N], of all agents together or of `each` ([3, N]); in float64 so that
    the order of summation hardly matters."""
    x, weight = x.double(), known.double()
    over = (0, 1) if each else tuple(range(x.dim()))
    return torch.stack([weight.sum(over), (x * weight).sum(over), (x * x * weight).sum(over)])
