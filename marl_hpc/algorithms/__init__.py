"""Algorithms: what is optimized, never who else optimizes it. One file each; `ALGORITHMS` maps names to classes.

An algorithm is a class with a `Config` dataclass and the methods of `Algorithm` below. It may have more: `annealing(updates)`, the share
of each part's learning rate that the next gradient step takes, after so many; and for paradigm=networked `networked = True`, with what
its critics see there: `critic_sees` (own | state) and `sees_joint_actions` (of discrete agents only), and, where its critics learn in
units of a `ValueNormalizer`, that one as `values` and a batch's gradient steps as `batch_steps`: statistics are averaged as often as critics;
and `modes = True` where agents act in one of two ways by episode, with `reservoir`, the `ReservoirConfig` of what it imitates. Sums that have to run over all
replicas of a learner go through the `exchange` it is given; alone, that adds nothing.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Protocol

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from marl_hpc.actors import PolicyNetwork
from marl_hpc.config import ConfigError
from marl_hpc.messages import KINDS
from marl_hpc.networks import ACTIVATIONS, FlatParameters
from marl_hpc.optimizers import OPTIMIZERS
from marl_hpc.types import Exchange, InterfaceSpec, ReplayConfig

ALGORITHMS: dict[str, str | type] = {
    "ppo": "marl_hpc.algorithms.ppo:PPO",
    "mmd": "marl_hpc.algorithms.mmd:MMD",
    "a2c": "marl_hpc.algorithms.a2c:A2C",
    "scalable_ac": "marl_hpc.algorithms.scalable_ac:ScalableAC",
    "happo": "marl_hpc.algorithms.happo:HAPPO",
    "coma": "marl_hpc.algorithms.coma:COMA",
    "dqn": "marl_hpc.algorithms.dqn:DQN",
    "nfsp": "marl_hpc.algorithms.nfsp:NFSP",
    "vdn": "marl_hpc.algorithms.vdn:VDN",
    "qmix": "marl_hpc.algorithms.qmix:QMIX",
    "sac": "marl_hpc.algorithms.sac:SAC",
    "networked_ac": "marl_hpc.algorithms.networked_ac:NetworkedAC",
    "maddpg": "marl_hpc.algorithms.maddpg:MADDPG",
}

Batch = dict[str, torch.Tensor]


class Algorithm(Protocol):
    """What an AgentInterface trains with. Shapes: T time, B copies that this replica holds, N agents of a group.

    A batch holds fields "group/field" [T, B, N, …] (see `storage.fragments`), "first" [T, B], with a critic over the state "state" and
    "next_state" [T, B, S], with one over joint actions "joint_action" [T, B, all agents], "over" and "cut" [T, B], and "policy/memory" [C, B, rows, H] of
    policies with a memory, at the start of each chunk.
    """

    Config: ClassVar[type]
    policies: dict[str, PolicyNetwork]  # as `interface.policies` names them
    parameters: FlatParameters  # the policies first, in their order, so that they are the buffer's beginning
    config: Any
    priorities: torch.Tensor | None  # [U, S] of the sequences of the last batch, where they are drawn by priority
    trained: int | None  # the place in `parts` of what the last minibatch trains; None: all of it
    sums: tuple[str, ...]  # what `loss` sums beside the gradient; one of them is `count`, the samples summed over

    def __init__(
        self, config: Any, interface: InterfaceSpec, exchange: Exchange, *, device: Any, dtype: Any, seed: int
    ) -> None: ...

    @staticmethod
    def check(config: Any, interface: InterfaceSpec, fragment: int) -> None:
        """Raise ConfigError where the algorithm can't serve these spaces or this paradigm, saying what would work. `fragment` is the
        number of steps that come at once."""
        ...

    @staticmethod
    def network(config: Any, interface: InterfaceSpec) -> dict[str, Any]:
        """What `actors.build_policy` builds the policies from; plain data, stored with exported policies."""
        ...

    @staticmethod
    def exploration(config: Any, env_steps: int) -> float:
        """The probability with which policies act uniformly at random, when so many environment steps have been learned from."""
        ...

    @staticmethod
    def replay(config: Any, interface: InterfaceSpec) -> ReplayConfig | None:
        """The description of its table, None for algorithms that learn from each fragment once. Batches from a
        table have fields [L, U, S, N, …]: U minibatches of S sequences of L steps; and "weight" and memories [1, U, S, …]."""
        ...

    def minibatches(self, batch: Batch, columns: torch.Tensor, total: int, seed: int, env_steps: int) -> Iterator[Batch]:
        """Minibatches of one batch; `columns` [B] are its places among the `total` copies of all replicas. Every replica yields
        equally many, and together they are the global minibatches."""
        ...

    def loss(self, minibatch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """(loss, the numbers named by `sums`), both summed over this replica's part of the minibatch."""
        ...

    def parts(self) -> list[tuple[slice, float]]:
        """The parts of the flat buffer that are optimized each by itself, and their learning rates."""
        ...

    def stepped(self, updates: int) -> None:
        """A gradient step has been taken, the one of this number: the time to move target networks."""
        ...

    def summarize(self, sums: torch.Tensor) -> dict[str, float]:
        """Metrics of one batch from the sums of its minibatches, [M, len(self.sums)], over all replicas."""
        ...

    def state(self) -> dict[str, torch.Tensor]:
        """Everything beside parameters and optimizer that training goes on from."""
        ...

    def load_state(self, state: dict[str, torch.Tensor]) -> None: ...


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """The networks of every algorithm, and what optimizes them."""

    hidden: list[int] = field(default_factory=lambda: [64, 64])
    activation: str = "tanh"  # tanh | relu | elu
    agent_id: bool = True  # a one-hot of the agent beside its observation, where a group has several
    gru: int = 0  # units of memory behind the hidden layers; 0: none
    chunk: int = 10  # steps that are learned from in one piece, where there is a memory
    optimizer: str = "adam"  # adam | adamw | sgd
    weight_decay: float = 0.0  # adamw and sgd
    momentum: float = 0.0  # sgd
    adam_eps: float = 1e-5
    # paradigm=networked, with a memory: what agents hear from their neighbors: none | neurcomm | commnet | dial (see marl_hpc.messages)
    messages: str = "none"
    message_size: int = 8  # messages=dial: bits of one
    autoregressive: bool = False  # paradigm=centralized: an agent's action depends on those of the agents before it


def network_options(config: NetworkConfig, interface: InterfaceSpec) -> dict[str, Any]:
    """The part of `Algorithm.network` that all share."""
    return {
        "hidden": list(config.hidden), "activation": config.activation, "agent_id": config.agent_id, "gru": config.gru,
        "joint": interface.joint_policy, "autoregressive": config.autoregressive, "stacked": interface.stacked,
        **({} if config.messages == "none" else {
            "messages": config.messages, "message_size": config.message_size, "neighbors": [list(pair) for pair in interface.neighbors],
        }),
    }  # fmt: skip


def check_network(config: NetworkConfig, interface: InterfaceSpec, fragment: int, *, linear: bool = False) -> None:
    """Raise ConfigError for options of the networks that can't be; `linear`: policies may have no hidden layers."""
    if config.activation not in ACTIVATIONS:
        raise ConfigError(f"algorithm.activation={config.activation!r}; choose one of: {', '.join(ACTIVATIONS)}")
    if not (config.hidden or linear) or min(config.hidden, default=1) < 1:
        raise ConfigError(
            f"algorithm.hidden={list(config.hidden)} must be {'' if linear else 'one or more '}sizes of 1 or more"
            + (", or [] for policies linear in what they see" if linear else "")
        )
    if config.optimizer not in OPTIMIZERS:
        raise ConfigError(f"algorithm.optimizer={config.optimizer!r} is not a choice; {', '.join(OPTIMIZERS)}")
    for key, owners in (("weight_decay", ("adamw", "sgd")), ("momentum", ("sgd",))):
        value = getattr(config, key)
        if value < 0 or (value and config.optimizer not in owners):
            raise ConfigError(
                f"algorithm.{key}={value} must be 0 or more, and 0 unless algorithm.optimizer is {' or '.join(owners)}; "
                f"got algorithm.optimizer={config.optimizer}"
            )
    if config.gru < 0:
        raise ConfigError(f"algorithm.gru={config.gru} must be 0 (no memory) or a number of units")
    check_messages(config, interface)
    if not config.gru and config.chunk != NetworkConfig.chunk:
        raise ConfigError(
            f"algorithm.chunk={config.chunk} is about policies with a memory; got algorithm.gru=0: set algorithm.gru, or leave chunk out"
        )
    if interface.stacked and not config.agent_id:
        raise ConfigError(
            "algorithm.agent_id=false with paradigm=networked: each agent has networks of its own, which are told nothing of who it is; leave "
            "it out"
        )
    if config.gru and (config.chunk < 1 or fragment % config.chunk):
        raise ConfigError(
            f"rollout.fragment={fragment} must be a multiple of algorithm.chunk={config.chunk}, the steps that a policy with a memory learns from in one piece"
        )
    if config.autoregressive and not interface.joint_policy:
        raise ConfigError(f"algorithm.autoregressive=true needs paradigm=centralized; got paradigm={interface.paradigm}")


def check_messages(config: NetworkConfig, interface: InterfaceSpec) -> None:
    kinds = ("none", *KINDS)
    if config.messages not in kinds:
        raise ConfigError(f"algorithm.messages={config.messages!r} is not a choice; {', '.join(kinds)}")
    if config.message_size < 1:
        raise ConfigError(f"algorithm.message_size={config.message_size} must be 1 bit or more")
    if config.messages != "dial" and config.message_size != NetworkConfig.message_size:
        raise ConfigError(
            f"algorithm.message_size={config.message_size} is about algorithm.messages=dial; got algorithm.messages={config.messages}: "
            "leave it out"
        )
    if config.messages == "none":
        return
    if not interface.stacked:
        raise ConfigError(
            f"algorithm.messages={config.messages} goes to neighbors on a graph, and only paradigm=networked has one; got "
            f"paradigm={interface.paradigm}: set paradigm=networked, or leave messages out"
        )
    if not config.gru:
        raise ConfigError(
            f"algorithm.messages={config.messages} is about what agents remember, and algorithm.gru=0 is no memory; set algorithm.gru=64"
        )


def annealed(config: Any, env_steps: int) -> float:
    """The share of uniformly random actions: from `epsilon_start` linearly to `epsilon_end` over `epsilon_steps`."""
    done = min(1.0, env_steps / config.epsilon_steps) if config.epsilon_steps else 1.0
    return config.epsilon_start + done * (config.epsilon_end - config.epsilon_start)


def check_epsilon(config: Any) -> None:
    for key in ("epsilon_start", "epsilon_end"):
        if not 0 <= getattr(config, key) <= 1:
            raise ConfigError(f"algorithm.{key}={getattr(config, key)} must lie between 0 and 1")
    if config.epsilon_steps < 0:
        raise ConfigError(f"algorithm.epsilon_steps={config.epsilon_steps} must be 0 (epsilon_end at once) or more")


def resolve(name: str) -> type:
    """The class behind an algorithm's name. Raises ConfigError with the nearest names."""
    target = ALGORITHMS.get(name, name if ":" in name else None)
    if target is None:
        near = difflib.get_close_matches(name, ALGORITHMS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ";"
        raise ConfigError(f"unknown algorithm.name={name!r}{hint} known: {', '.join(sorted(ALGORITHMS))}; or my_module:Class")
    if isinstance(target, type):
        return target
    module, _, attribute = target.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"algorithm.name={name!r} could not be imported: {error}") from error


def configure(section: dict[str, Any]) -> tuple[type, Any]:
    """(algorithm class, its typed configuration) from the `algorithm` section. Raises ConfigError naming key and choices."""
    section = dict(section)
    algorithm = resolve(section.pop("name"))
    known = [f.name for f in fields(algorithm.Config)]
    for key in section:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean algorithm.{near[0]}?" if near else ";"
            raise ConfigError(f"unknown key algorithm.{key}={section[key]!r}{hint} known: {', '.join(known)}")
    try:
        schema = OmegaConf.structured(algorithm.Config)
        OmegaConf.set_readonly(schema, False)
        typed = OmegaConf.to_object(OmegaConf.merge(schema, section))
    except (OmegaConfBaseException, ValueError) as error:
        key = getattr(error, "full_key", None)
        raise ConfigError(f"algorithm{f'.{key}={section.get(key)!r}' if key else ''}: {str(error).splitlines()[0]}") from error
    return algorithm, typed
