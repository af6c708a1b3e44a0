"""The paradigms, as a table: which AgentInterface trains a group, and which learner ranks host which interfaces."""

from __future__ import annotations

from typing import NamedTuple

from marl_hpc.agents import AgentInterface, IndependentAgent
from marl_hpc.config import ConfigError


class Paradigm(NamedTuple):
    agent: type[AgentInterface]
    critic_sees: str
    policy_sees: str
    exchange: str


PARADIGMS: dict[str, Paradigm] = {
    "independent": Paradigm(
        IndependentAgent, "own observation", "own observation", "all-reduce among replicas of the same policy only"
    ),
}


def resolve(name: str) -> Paradigm:
    if name not in PARADIGMS:
        raise ConfigError(f"unknown paradigm={name!r}; known: {', '.join(PARADIGMS)}")
    return PARADIGMS[name]


def hosts(groups: list[str], learners: int) -> dict[str, list[int]]:
    """Learner ranks that hold a replica of each group's interface.

    With as many groups as learners or more, each interface lives on one learner; otherwise learners share out as replicas.

    >>> hosts(["a", "b", "c"], 2)
    {'a': [0], 'b': [1], 'c': [0]}
    >>> hosts(["a", "b"], 3)
    {'a': [0, 2], 'b': [1]}
    """
    count = len(groups)
    if count >= learners:
        return {name: [i % learners] for i, name in enumerate(groups)}
    return {name: [j for j in range(learners) if j % count == i] for i, name in enumerate(groups)}
