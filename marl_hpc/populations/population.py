"""Frozen policies and where they come from. A policy that was added never changes: what it is is hashed then, and checked at every read.

Players with a population of their own have numbers of their own; players of a symmetric game may share one. Only names, lineage and
hashes are here: the values lie wherever a `Values` puts them, in memory or pinned on parameter shards. Pure NumPy.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

PLAYED = ("drawn", "greedy", "uniform")


class PolicyId(NamedTuple):
    """A policy's name, for good: its population, and its place in the order in which policies were added to that one."""

    population: int
    number: int

    def __str__(self) -> str:
        return f"{self.population}/{self.number}"


class Member(NamedTuple):
    """A frozen policy's lineage. Its values are all that it acts by: policies have no statistics of observations or rewards beside their
    parameters (those of values are critics', which aren't frozen)."""

    id: PolicyId
    parent: int | None  # the number, in the same population, of the policy that its training started from; None: from scratch
    iteration: int  # of the algorithm that added it; those it started with are of 0
    env_steps: int  # environment steps that its training took, its ancestors' included; 0 where it was computed
    run_steps: int  # environment steps of the whole run when it was frozen
    made_by: str  # in words, such as "best response"
    played: (
        str  # how it takes actions: drawn (from its probabilities) | greedy (its most likely one) | uniform (whatever its values)
    )
    content: str  # `content_hash` of its values


class Values(Protocol):
    """Where policies' values lie."""

    def put(self, name: PolicyId, values: np.ndarray) -> None:
        """Keep `values`. Repeating it changes nothing."""
        ...

    def get(self, name: PolicyId) -> np.ndarray:
        """What was put under this name. Raises LookupError where nothing was."""
        ...


class MemoryValues:
    """Values in this process's memory, as copies that can't be written to."""

    def __init__(self) -> None:
        self._values: dict[PolicyId, np.ndarray] = {}

    def put(self, name: PolicyId, values: np.ndarray) -> None:
        kept = np.array(values)
        kept.flags.writeable = False
        self._values[name] = kept

    def get(self, name: PolicyId) -> np.ndarray:
        if name not in self._values:
            raise LookupError(f"there are no values of policy {name}; {len(self._values)} policies have some")
        return self._values[name]


class PolicyPopulation:
    """The populations of `populations[i]` for each player i: (0, 1) gives each of two players its own, (0, 0) one to both.

    >>> rock, population = np.array([1.0, 0.0, 0.0]), PolicyPopulation((0, 0))
    >>> population.add(PolicyId(0, 0), rock, made_by="by hand").content == content_hash(rock)
    True
    >>> population.sizes, population.values(PolicyId(0, 0)).tolist()
    ((1, 1), [1.0, 0.0, 0.0])
    """

    def __init__(self, populations: Sequence[int], values: Values | None = None) -> None:
        self.populations = checked_populations(populations)
        self._values: Values = MemoryValues() if values is None else values
        self._members: list[list[Member]] = [[] for _ in set(self.populations)]

    def __iter__(self) -> Iterator[Member]:
        return (member for members in self._members for member in members)

    def __len__(self) -> int:
        return sum(map(len, self._members))

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many policies each player can choose from."""
        return tuple(len(self._members[population]) for population in self.populations)

    def member(self, name: PolicyId) -> Member:
        """A policy's lineage. Raises LookupError for one that isn't there."""
        if not (0 <= name.population < len(self._members) and 0 <= name.number < len(self._members[name.population])):
            raise LookupError(
                f"there is no policy {name}; populations have {', '.join(str(len(m)) for m in self._members)} policies"
            )
        return self._members[name.population][name.number]

    def members(self, population: int) -> tuple[Member, ...]:
        """The lineages of one population, in the order of their numbers."""
        return tuple(self._members[self._checked(population)])

    def next_id(self, population: int) -> PolicyId:
        """The name of the policy that would be added next."""
        return PolicyId(population, len(self._members[self._checked(population)]))

    def find(self, population: int, values: np.ndarray) -> Member | None:
        """The first policy that has exactly these values, if any."""
        content = content_hash(values)
        return next((member for member in self._members[self._checked(population)] if member.content == content), None)

    def add(
        self,
        name: PolicyId,
        values: np.ndarray,
        *,
        made_by: str,
        parent: int | None = None,
        iteration: int = 0,
        env_steps: int = 0,
        run_steps: int = 0,
        played: str = "drawn",
    ) -> Member:
        """Freeze a policy under the next name of its population. Doing so again changes nothing.

        Raises ValueError where the name stands for something else already, isn't the next one, or where the parent isn't known.
        """
        new = Member(PolicyId(*name), parent, iteration, env_steps, run_steps, made_by, played, content_hash(values))
        self.admit(new)
        self._values.put(new.id, values)
        return new

    def admit(self, new: Member) -> None:
        """As `add`, of a policy whose values somebody else keeps."""
        name, parent = PolicyId(self._checked(new.id.population), new.id.number), new.parent
        members = self._members[name.population]
        if 0 <= name.number < len(members):
            if members[name.number] != new:
                raise ValueError(f"policy {name} is {members[name.number]}, and frozen; it can't become {new}: add a new one")
            return
        if name.number != len(members):
            raise ValueError(f"policy {name} isn't the next one of its population; that is {self.next_id(name.population)}")
        if parent is not None and not 0 <= parent < len(members):
            raise ValueError(f"policy {name} has parent {parent}; expected one of the {len(members)} that are there, or None")
        if min(new.iteration, new.env_steps, new.run_steps) < 0:
            raise ValueError(
                f"policy {name} has iteration={new.iteration}, env_steps={new.env_steps}, run_steps={new.run_steps}; none can be negative"
            )
        if new.played not in PLAYED:
            raise ValueError(f"policy {name} has played={new.played!r}; expected one of: {', '.join(PLAYED)}")
        members.append(new)

    def restore(self, name: PolicyId, values: np.ndarray) -> None:
        """Keep the values of a policy whose lineage came with `load_state`. Raises RuntimeError where they aren't what was frozen."""
        if content_hash(values) != self.member(name).content:
            raise RuntimeError(f"these aren't the values of frozen policy {name}: their SHA-256 isn't {self.member(name).content}")
        self._values.put(name, values)

    def values(self, name: PolicyId) -> np.ndarray:
        """A policy's values. Raises LookupError where there are none, and RuntimeError where they aren't what was frozen."""
        member = self.member(name)
        values = self._values.get(name)
        if content_hash(values) != member.content:
            raise RuntimeError(f"the values of frozen policy {name} have changed: their SHA-256 isn't {member.content}")
        return values

    def state(self) -> dict[str, np.ndarray]:
        """Lineages and hashes for `load_state`, without the values: those are stored by who holds them."""
        members = list(self)
        text = json.dumps([[member.made_by, member.played, member.content] for member in members])
        numbers = [(*m.id, -1 if m.parent is None else m.parent, m.iteration, m.env_steps, m.run_steps) for m in members]
        return {
            "populations": np.array(self.populations),
            "numbers": np.array(numbers, np.int64).reshape(len(members), 6),
            "text": np.frombuffer(text.encode(), np.uint8).copy(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take over what a state holds instead of what is here. Raises ValueError where it is of other populations."""
        found = tuple(np.asarray(state["populations"]).tolist())
        if found != self.populations:
            raise ValueError(f"the state is of populations {found}, these are {self.populations}; load it into the same ones")
        text = json.loads(np.asarray(state["text"]).tobytes())
        members: list[list[Member]] = [[] for _ in self._members]
        for (population, number, parent, iteration, env_steps, run_steps), (made_by, played, content) in zip(
            np.asarray(state["numbers"]).tolist(), text, strict=True
        ):
            ancestor = None if parent < 0 else parent
            member = Member(PolicyId(population, number), ancestor, iteration, env_steps, run_steps, made_by, played, content)
            members[population].append(member)
        self._members = members

    def _checked(self, population: int) -> int:
        if not 0 <= population < len(self._members):
            raise ValueError(f"there is no population {population}; expected 0 … {len(self._members) - 1}")
        return population


def content_hash(values: np.ndarray) -> str:
    """SHA-256 of an array's type, shape and numbers.

    >>> content_hash(np.zeros(2)) == content_hash(np.zeros(2)) != content_hash(np.zeros((2, 1)))
    True
    """
    array = np.ascontiguousarray(values)
    head = f"{array.dtype.str} {np.shape(values)} ".encode()
    return hashlib.sha256(head + array.tobytes()).hexdigest()


def checked_populations(populations: Sequence[int]) -> tuple[int, ...]:
    """Each player's population. Raises ValueError unless there are players, and populations are numbered from 0."""
    given = tuple(int(population) for population in populations)
    if not given or sorted(set(given)) != list(range(len(set(given)))):
        raise ValueError(
            f"populations={given}: expected one for each player, numbered from 0, such as (0, 1), or (0, 0) to share one"
        )
    return given
