"""The paradigms, as a table: which AgentInterface trains agents, what critic and policy see, and which learner ranks host whom."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from marl_hpc import algorithms
from marl_hpc.agents import AgentInterface, IndependentAgent, NetworkedAgent, TeamAgent
from marl_hpc.config import Config, ConfigError
from marl_hpc.neighborhoods import neighbors_of
from marl_hpc.populations.schemes import lines_of
from marl_hpc.types import EnvSpec, GroupSpec, InterfaceSpec


class Paradigm(NamedTuple):
    agent: type[AgentInterface]
    # own: the agent's own observation | state: the team's state too | joint: all members' observations | algorithm: what the
    # algorithm's class says by `critic_sees`, and by `sees_joint_actions`; own where it says nothing
    critic_sees: str
    policy_sees: str  # own | joint
    exchange: str
    stacked: bool = False  # each agent has parameters of its own

    @property
    def teams(self) -> bool:
        return issubclass(self.agent, TeamAgent)


PARADIGMS: dict[str, Paradigm] = {
    "independent": Paradigm(IndependentAgent, "own", "own", "all-reduce among replicas of the same policy only"),
    "ctde": Paradigm(TeamAgent, "state", "own", "all-reduce among the team's replicas"),
    "centralized": Paradigm(TeamAgent, "joint", "joint", "all-reduce among the team's replicas"),
    "networked": Paradigm(NetworkedAgent, "algorithm", "own", "neighbor-only all-reduce after each agent's own step", stacked=True),
}


class Plan(NamedTuple):
    """One AgentInterface as every rank knows it: what it trains and how."""

    interface: InterfaceSpec
    agent: type[AgentInterface]
    algorithm: type
    options: Any  # the algorithm's typed configuration


def resolve(name: str) -> Paradigm:
    if name not in PARADIGMS:
        raise ConfigError(f"unknown paradigm={name!r}; known: {', '.join(PARADIGMS)}")
    return PARADIGMS[name]


def plan(config: Config, spec: EnvSpec) -> list[Plan]:
    """The AgentInterfaces of a run, in order: those that `interfaces` names, or by the paradigm one for each group (independent) or
    one for all. Raises ConfigError where groups are missing, or an algorithm can't serve them."""
    groups = {group.name: group for group in spec.groups}
    given: Any = config.interfaces
    if given is None:
        alone = not resolve(config.paradigm.name).teams
        given = {name: {"groups": [name]} for name in groups} if alone else {"team": {"groups": list(groups)}}
    check_members(given, groups)
    plans = []
    for name, section in given.items():
        section = dict(section)
        paradigm_name = section.get("paradigm", config.paradigm.name)
        paradigm = resolve(paradigm_name)
        members = tuple(groups[group] for group in section["groups"])
        if not paradigm.teams and len(members) > 1:
            raise ConfigError(
                f"interfaces.{name}: paradigm={paradigm_name} trains one group, got {', '.join(g.name for g in members)}; "
                "name an interface for each, or choose paradigm=ctde"
            )
        own = section.get("algorithm", {})
        same = own.get("name", config.algorithm.get("name")) == config.algorithm.get("name")
        algorithm, options = algorithms.configure({**config.algorithm, **own} if same else own)  # options are an algorithm's own
        by_algorithm = paradigm.critic_sees == "algorithm"
        critic_sees = getattr(algorithm, "critic_sees", "own") if by_algorithm else paradigm.critic_sees
        joint_actions = by_algorithm and getattr(algorithm, "sees_joint_actions", False)
        if not paradigm.teams and "team_reward" in section:
            raise ConfigError(
                f"interfaces.{name}: team_reward={section['team_reward']} is about teams, and agents of paradigm={paradigm_name} have their own "
                "rewards; leave it out"
            )
        interface = InterfaceSpec(
            name=name,
            paradigm=paradigm_name,
            groups=members,
            team_reward=section.get("team_reward", config.team_reward) if paradigm.teams else "individual",
            critic_sees=critic_sees,
            joint_policy=paradigm.policy_sees == "joint",
            stacked=paradigm.stacked,
            mix=config.topology.mix if paradigm.stacked else "none",
            modes=getattr(algorithm, "modes", False),
            turns=len(spec.agents) if spec.turn_based else 1,
            state_size=math.prod(spec.state_shape) if critic_sees == "state" else 0,
            joint_agents=tuple(agent for group in members for agent in group.agents) if joint_actions else (),
        )
        if interface.team_reward not in ("mean", "sum", "individual"):
            raise ConfigError(f"team_reward={interface.team_reward!r} is not a choice; mean, sum or individual")
        if interface.joint_policy and interface.team_reward == "individual":
            raise ConfigError("paradigm=centralized is one policy for the team: team_reward must be mean or sum, not individual")
        if config.sync.name != "bsp" and getattr(options, "lr_steps", 0):
            raise ConfigError(
                f"algorithm.lr_steps={options.lr_steps} with sync={config.sync.name}: parameter shards take the steps there, with a constant "
                "algorithm.lr; leave lr_steps out"
            )
        if interface.modes != (config.population.name == "nfsp"):
            raise ConfigError(
                f"population={config.population.name} with algorithm={algorithm.__name__.lower()}: who acts by its best response, who by its "
                "average policy is drawn by population=nfsp for algorithm=nfsp; set both, or neither"
            )
        if paradigm.stacked:
            check_stacked(algorithm, interface)
            if getattr(algorithm, "local_critics", False) or getattr(options, "messages", "none") != "none":
                interface = replace(interface, neighbors=neighbors_of(config.topology, spec, next(iter(members))))
        algorithm.check(options, interface, config.rollout.fragment)
        if joint_actions and sum(len(group.agents) for group in members) < len(spec.agents):
            raise ConfigError(
                f"algorithm={own.get('name', config.algorithm.get('name'))} learns from what everybody does, together: of {len(spec.agents):,} agents interface {name!r} has "
                f"{sum(len(group.agents) for group in members):,}; put all into one group, or use algorithm=a2c or ppo"
            )
        plans.append(Plan(interface, paradigm.agent, algorithm, options))
    check_used(config, plans)
    plans = [p._replace(interface=lined(p.interface, line)) for line in range(lines_of(config.population)) for p in plans]
    names = [name for p in plans for name in p.interface.policies]
    if len(set(names)) < len(names):
        raise ConfigError(f"interfaces have policies of the same name: {', '.join(names)}; rename an interface or a group")
    return plans


def check_used(config: Config, plans: list[Plan]) -> None:
    """Raise ConfigError for options that would change nothing for any of these."""
    usual = Config()
    if config.team_reward != usual.team_reward and not any(issubclass(p.agent, TeamAgent) for p in plans):
        raise ConfigError(
            f"team_reward={config.team_reward} is about teams, and here are none: agents have their own rewards; choose paradigm=ctde or "
            "centralized, or leave it out"
        )
    section, stacked = config.topology, [p for p in plans if p.interface.stacked]
    on_graph = section.mix != "none" or section.reward_discount or any(p.interface.neighbors for p in stacked)
    if stacked and not on_graph and (section.name, section.options) != (usual.topology.name, usual.topology.options):
        raise ConfigError(
            f"topology={section.name} with topology.mix=none, topology.reward_discount=0 and no messages: nobody has anything to do with neighbors, "
            "whoever they are; leave topology out"
        )


def lined(interface: InterfaceSpec, line: int) -> InterfaceSpec:
    """That interface for another policy of the same agents."""
    return replace(interface, name=f"{interface.name}+{line}", line=line) if line else interface


def check_stacked(algorithm: type, interface: InterfaceSpec) -> None:
    """Raise ConfigError where agents can't have parameters of their own."""
    if not getattr(algorithm, "networked", False):
        known = [name for name in algorithms.ALGORITHMS if getattr(algorithms.resolve(name), "networked", False)]
        raise ConfigError(f"{algorithm.__name__} doesn't train paradigm=networked; algorithms that do: {', '.join(known)}")
    for group in interface.groups:
        if group.image:
            raise ConfigError(
                f"paradigm=networked: the agents of {group.name!r} observe images, and their networks are batched matrix products; "
                "encode the images in the environment, or choose paradigm=independent"
            )


def check_members(given: Any, groups: Mapping[str, GroupSpec]) -> None:
    """Every group belongs to exactly one interface. Raises ConfigError saying which doesn't."""
    known = ("groups", "paradigm", "algorithm", "team_reward")
    if not isinstance(given, Mapping) or not all(
        isinstance(s, Mapping) and isinstance(s.get("groups"), list) for s in given.values()
    ):
        raise ConfigError(f"interfaces={given!r} must be {{name: {{groups: [group, …], {', '.join(known[1:])}}}}}")
    for name, section in given.items():
        if unknown := set(section) - set(known):
            raise ConfigError(f"interfaces.{name} has unknown keys {sorted(unknown)}; known: {', '.join(known)}")
    members = [group for section in given.values() for group in section["groups"]]
    if sorted(members) != sorted(groups):
        raise ConfigError(
            f"interfaces name the groups {sorted(members)}, each group must stand there once: {sorted(groups)}; see `groups` for who is in which"
        )


def hosts(interfaces: list[str], learners: int) -> dict[str, list[int]]:
    """Learner ranks that hold a replica of each interface.

    With as many interfaces as learners or more, each lives on one learner; otherwise learners share out as replicas.

    >>> hosts(["a", "b", "c"], 2)
    {'a': [0], 'b': [1], 'c': [0]}
    >>> hosts(["a", "b"], 3)
    {'a': [0, 2], 'b': [1]}
    """
    count = len(interfaces)
    if count >= learners:
        return {name: [i % learners] for i, name in enumerate(interfaces)}
    return {name: [j for j in range(learners) if j % count == i] for i, name in enumerate(interfaces)}
