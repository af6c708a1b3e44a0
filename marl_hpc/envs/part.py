"""A part of an environment's agents: what one of several ranks sees of copies that all of them step alike.

Every rank of a team has the whole environment, with the same seeds; in each step they tell each other what their agents do, and each
steps all of it. So no rank holds all agents' policies or data, and an environment needn't know that it is shared. May import types.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from marl_hpc.types import EnvBatch, EnvSpec, GroupSpec, Seen, Step


class Members(NamedTuple):
    """One group of a part: agents of a group of the whole."""

    group: GroupSpec
    whole: str  # the name of the group that its agents are of
    places: np.ndarray | None  # of the agents there, in the order of `group`; None: all of them


class PartBatch:
    """An `EnvBatch` of some agents."""

    def __init__(
        self,
        env: EnvBatch,
        parts: Sequence[Members],
        exchange: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]],
        *,
        leads: bool,
    ) -> None:
        """`exchange` gives all agents' actions {group: [B, N, …]} of the whole, from those of this part's agents. `leads`: this part is
        the first of those that step these copies; what is to be told once, it tells."""
        self.whole, self.parts, self.exchange, self.leads = env, list(parts), exchange, leads
        self.copies = env.copies
        self.done: dict[str, np.ndarray] = {}  # what all agents did last
        self.truncated: Mapping[str, np.ndarray] = {}  # and who of all was cut off in that step
        self.spec: EnvSpec = replace(env.spec, groups=tuple(part.group for part in parts))

    def reset(self, copies: list[int], seeds: list[int]) -> None:
        self.whole.reset(copies, seeds)

    def observe(self) -> Seen:
        return self._seen(self.whole.observe())

    def state(self) -> np.ndarray:
        return self.whole.state()

    def step(self, actions: Mapping[str, np.ndarray]) -> Step:
        self.done = self.exchange(dict(actions))
        after = self.whole.step(self.done)
        self.truncated = after.truncated
        return Step(
            self._seen(after.seen), self.own(after.reward), self.own(after.terminated), self.own(after.truncated), after.over,
            earned(self.whole.spec, after),
        )  # fmt: skip

    def close(self) -> None:
        self.whole.close()

    def own(self, arrays: Mapping[str, np.ndarray], axis: int = 1) -> dict[str, np.ndarray]:
        """This part's agents of arrays {group: […, N, …]} of the whole."""
        return {
            part.group.name: arrays[part.whole] if part.places is None else np.take(arrays[part.whole], part.places, axis)
            for part in self.parts
            if part.whole in arrays
        }

    def _seen(self, seen: Seen) -> Seen:
        return Seen(*(self.own(part) for part in seen))


def whole_of(env: EnvBatch) -> EnvSpec:
    """The spec of the whole environment."""
    return env.whole.spec if isinstance(env, PartBatch) else env.spec


def own(env: EnvBatch, arrays: Mapping[str, np.ndarray], axis: int = 1) -> Mapping[str, np.ndarray]:
    """Of arrays of the whole's groups those of this part's agents."""
    return env.own(arrays, axis) if isinstance(env, PartBatch) else arrays


def everybodys(env: EnvBatch, group: str, actions: Mapping[str, np.ndarray]) -> np.ndarray:
    """What all agents of the whole group did [B, N, …] of which `group` is a part, in the step that these `actions` were taken in."""
    if not isinstance(env, PartBatch):
        return actions[group]
    return env.done[next(part.whole for part in env.parts if part.group.name == group)]


def cut_off(env: EnvBatch, group: str, after: Step) -> np.ndarray:
    """Whether copies' episodes [B] ended in the step that led to `after` because they were cut off, for somebody of the whole group of which
    `group` is a part."""
    truncated = after.truncated
    if isinstance(env, PartBatch):
        truncated, group = env.truncated, next(part.whole for part in env.parts if part.group.name == group)
    return after.over & truncated[group].any(1)


def earned(spec: EnvSpec, step: Step) -> np.ndarray:
    """Rewards [B, G] summed over the agents of each group of the whole."""
    if step.earned is not None:
        return step.earned
    return np.stack([step.reward[group.name].sum(1) for group in spec.groups], 1)
