"""What environments that step all copies at once have in common: whose turn in life a copy is, and how arrays become groups.

One idea: a subclass knows only its own rules, as arrays over B copies (`begin`, `advance`, `look`); this class keeps the clocks, sorts
actions and observations into groups, and keeps copies that are over still until they are reset. All agents live as long as the episode.
May import types and config only, besides third-party packages.
"""

from __future__ import annotations

import importlib.metadata
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from marl_hpc.config import ConfigError
from marl_hpc.envs.grouping import group_agents
from marl_hpc.types import EnvSpec, GroupSpec, Seen, Step


class VectorizedBatch(ABC):
    """An `EnvBatch` of B copies without a loop over copies. `agents` maps names to (observation space, action space), in order.

    `state_from`: "observations" (all, by group), or "environment": all observations in the order of `agents`, unless a subclass gives
    another `state` and a `state_shape`. `legal`: bool [N, A], which of A actions an agent has at all, where some lack some; it becomes
    the action mask.
    """

    def __init__(
        self,
        name: str,
        version: str,
        copies: int,
        agents: Mapping[str, tuple[Any, Any]],
        groups: str | Mapping[str, str],
        *,
        state_from: str = "observations",
        state_shape: tuple[int, ...] | None = None,
        legal: np.ndarray | None = None,
    ) -> None:
        if copies < 1:
            raise ConfigError(f"env.name={name!r}: copies={copies}; at least one copy is needed")
        sees, does = ({agent: both[part] for agent, both in agents.items()} for part in (0, 1))
        found = group_agents(tuple(agents), sees, does, groups, masked=() if legal is None else agents)
        sizes = sum(math.prod(g.observation_shape) * len(g.agents) for g in found)
        shape = state_shape or (sizes,)
        self.spec = EnvSpec(name=name, version=version, groups=found, state_shape=shape, state_from=state_from)
        self.copies = copies
        self.clock = np.zeros(copies, int)  # steps of the present episode, this one included
        place = {agent: i for i, agent in enumerate(agents)}
        self._rows = {g.name: np.array([place[agent] for agent in g.agents]) for g in found}
        self._parts = {name: _span(rows) for name, rows in self._rows.items()}
        self._legal = legal
        self._playing = np.zeros(copies, bool)
        self._shown = np.zeros(copies, bool)  # has something to show: playing, or just over
        self._looked: Any = None
        kinds = {(g.action_space.kind, g.action_space.action_shape) for g in found}
        self._shape_of_all = next(iter(kinds))[1] if len(kinds) == 1 else None

    @abstractmethod
    def begin(self, copies: np.ndarray, seeds: Sequence[int]) -> None:
        """Start new episodes in these copies [n]."""

    @abstractmethod
    def advance(self, chosen: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Step all copies: (reward [B, N], terminated [B], truncated [B]).

        `chosen` holds actions by agent: an array [N, B, …] when their shapes are equal, else a list of N arrays [B, …]. What it does to
        copies that are over doesn't matter.
        """

    @abstractmethod
    def look(self) -> np.ndarray | list[np.ndarray]:
        """Observations as float32: a fresh [B, N, …], or a list of N fresh [B, …] where their shapes differ."""

    def reset(self, copies: list[int], seeds: list[int]) -> None:
        if len(copies) != len(seeds):
            raise ValueError(f"reset of {len(copies)} copies got {len(seeds)} seeds; give one for each")
        if not copies:
            return
        index = np.asarray(copies, int)
        self.begin(index, seeds)
        self.clock[index], self._playing[index], self._shown[index] = 0, True, True
        self._looked = None

    def observe(self) -> Seen:
        everything = self._everything()
        if isinstance(everything, np.ndarray):
            observation = {name: np.array(everything[:, part]) for name, part in self._parts.items()}
        else:
            observation = {name: np.stack([everything[i] for i in rows], 1) for name, rows in self._rows.items()}
        mask = {}
        if self._legal is not None:
            legal = self._legal | ~self._playing[:, None, None]
            mask = {name: legal[:, part] for name, part in self._parts.items()}
        return Seen(observation, mask, self._for_groups(self._playing))

    def state(self) -> np.ndarray:
        if self.spec.state_from == "observations":
            return np.concatenate([array.reshape(self.copies, -1) for array in self.observe().observation.values()], 1)
        everything = self._everything()
        if isinstance(everything, np.ndarray):
            return everything.reshape(self.copies, -1).copy()
        return np.concatenate([array.reshape(self.copies, -1) for array in everything], 1)

    def step(self, actions: Mapping[str, np.ndarray]) -> Step:
        before = self._playing
        self._shown = before
        self.clock += before
        reward, terminated, truncated = self.advance(self._chosen(actions))
        reward = np.where(before[:, None], reward, 0.0)
        terminated = terminated & before
        truncated = truncated & before & ~terminated
        self._playing = before & ~(terminated | truncated)
        self._looked = None
        return Step(
            self.observe(),
            {name: reward[:, part] for name, part in self._parts.items()},
            self._for_groups(terminated),
            self._for_groups(truncated),
            ~self._playing,
        )

    def close(self) -> None:  # noqa: B027  arrays need no closing, here or in a subclass
        pass

    def _everything(self) -> Any:
        if self._looked is None:
            self._looked = self.look()
            if not self._shown.all():
                for array in [self._looked] if isinstance(self._looked, np.ndarray) else self._looked:
                    array[~self._shown] = 0
        return self._looked

    def _for_groups(self, flag: np.ndarray) -> dict[str, np.ndarray]:
        return {name: np.repeat(flag[:, None], len(rows), 1) for name, rows in self._rows.items()}

    def _chosen(self, actions: Mapping[str, np.ndarray]) -> Any:
        """Checked actions by agent. Raises ValueError for a wrong shape or for a choice that doesn't exist."""
        parts = {}
        for group in self.spec.groups:
            space, array = group.action_space, np.asarray(actions[group.name])
            expected = (self.copies, len(group.agents), *space.action_shape)
            if array.shape != expected:
                raise ValueError(f"actions of group {group.name!r} have shape {array.shape}; expected {expected}")
            if space.kind == "discrete":
                if not self._playing.all():
                    array = np.where(self._playing[:, None], array, 0)
                if array.min() < 0 or array.max() >= space.n:
                    wrong = array[(array < 0) | (array >= space.n)].flat[0]
                    raise ValueError(f"group {group.name!r} has {space.n} actions, 0 to {space.n - 1}, and got {wrong}")
                if self._legal is not None:
                    self._check_legal(group, array)
            parts[group.name] = array
        if len(parts) == 1 and self._shape_of_all is not None:
            (array,) = parts.values()
            return array.swapaxes(0, 1)
        if self._shape_of_all is not None:
            first = next(iter(parts.values()))
            together = np.empty((len(self.spec.agents), self.copies, *self._shape_of_all), first.dtype)
            for name, array in parts.items():
                together[self._parts[name]] = array.swapaxes(0, 1)
            return together
        by_agent: dict[int, np.ndarray] = {}
        for name, array in parts.items():
            by_agent.update({int(row): array[:, i] for i, row in enumerate(self._rows[name])})
        return [by_agent[i] for i in range(len(by_agent))]

    def _check_legal(self, group: GroupSpec, array: np.ndarray) -> None:
        assert self._legal is not None
        wrong = ~self._legal[self._rows[group.name], array] & self._playing[:, None]
        if wrong.any():
            copy, i = np.argwhere(wrong)[0]
            legal = np.flatnonzero(self._legal[self._rows[group.name][i]]).tolist()
            raise ValueError(
                f"{group.agents[i]} in copy {copy} has the actions {legal} and got {array[copy, i]}; choose by the action mask"
            )


def _span(rows: np.ndarray) -> slice | np.ndarray:
    """Rows as a slice where they are next to each other: indexing copies nothing then."""
    return slice(int(rows[0]), int(rows[-1]) + 1) if rows[-1] - rows[0] == len(rows) - 1 else rows


def box(size: int) -> spaces.Box:
    """An unbounded observation space of this many numbers."""
    return spaces.Box(-np.inf, np.inf, (size,), np.float32)


def release() -> str:
    """Ours, for an environment's version: results depend on it."""
    try:
        return f"marl_hpc {importlib.metadata.version('marl_hpc')}"
    except importlib.metadata.PackageNotFoundError:
        return "marl_hpc local"
