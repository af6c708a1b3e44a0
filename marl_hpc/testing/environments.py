"""What an environment promises, as a test for users to import: `env_contract(lambda copies: make("my_module:env", copies=copies))`.

Plays random legal actions and raises ContractError, with copy, agent and step, at the first promise of `EnvBatch` that is broken.
Imports types and random play only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from marl_hpc.envs.random_play import random_actions
from marl_hpc.types import EnvBatch, EnvSpec, Seen, Step

Arrays = dict[str, np.ndarray]  # of one moment, by a readable name


class ContractError(AssertionError):
    """An environment doesn't do what `EnvBatch` says."""


def env_contract(make: Callable[[int], EnvBatch], steps: int = 200, *, seed: int = 0, independent: bool = True) -> None:
    """Check everything that an `EnvBatch` promises over `steps` steps of random legal actions.

    Shapes and types; every active agent has a legal action; agents' episodes end once, after which their places are inactive and
    zero; a copy is over when nobody acts in it any more; in turn-based play one agent acts at a time; what was returned isn't
    written again, so that final observations stay; equal seeds give equal episodes, also after others and after abandoned
    ones; copies don't touch each other, which `independent=False` leaves out for simulators that promise it only roughly. Raises ContractError saying what broke.
    """
    env = make(3)
    spec = env.spec
    _require(env.copies == 3, f"make(3) gave an environment with copies={env.copies}")
    _require(len(set(spec.agents)) == len(spec.agents) > 0, f"spec.agents={spec.agents}: expected at least one, each once")
    _require(len({group.name for group in spec.groups}) == len(spec.groups), "two groups have the same name")
    _require(EnvSpec.from_json(spec.to_json()) == spec, "the spec isn't the same after to_json and from_json")
    _require(
        spec.state_from in ("environment", "observations"), f"spec.state_from={spec.state_from!r}: environment or observations"
    )
    first = _Game(env, seed).play(steps)
    _Game(env, seed).abandon()
    _same(first, _Game(env, seed).play(steps), "the same environment, reset with the same seeds again,")
    other = make(3)
    _require(other.spec == spec, f"make gave another spec the second time: {other.spec} instead of {spec}")
    _require(np.array_equal(_edges(other), _edges(env)), "make gave other edges the second time; draw them by a seed of their own")
    _same(first, _Game(other, seed).play(steps), "another environment with the same seeds")
    for copy in (0, 2) if independent else ():
        alone = make(1)
        rows = _Game(alone, seed, places=[copy]).play(steps)
        mine = [{name: array[[copy]] for name, array in moment.items()} for moment in first]
        _same(mine, rows, f"an environment with only copy {copy} of three, its seed and its actions,")
        alone.close()
    env.close()
    other.close()


class _Game:
    """Plays random actions, checking each step. `places` says which copies of the full environment these are: seeds and actions
    belong to them."""

    def __init__(self, env: EnvBatch, seed: int, places: list[int] | None = None) -> None:
        self.env, self.spec = env, env.spec
        self.places = places or list(range(env.copies))
        self.random = [np.random.default_rng([seed, place]) for place in self.places]
        shapes = {group.name: (env.copies, len(group.agents)) for group in env.spec.groups}
        # by group [B, N]: has acted in this episode, ended in it, ended in it before the last step
        self.met, self.ended, self.gone = ({name: np.zeros(shape, bool) for name, shape in shapes.items()} for _ in range(3))
        self.cut: list[bool] = []  # for each truncation after which something might be seen: whether nothing was
        self.when = "after reset"

    def play(self, steps: int) -> list[Arrays]:
        copies = list(range(self.env.copies))
        self.env.reset(copies, self._seeds(copies))
        seen = self._check_seen(self.env.observe())
        moments, kept = [_copy(self._moment(seen, None))], []
        for t in range(steps):
            actions = {name: array.copy() for name, array in self._actions(seen).items()}
            before = _copy(self._moment(seen, None))
            step = self.env.step(actions)
            self.when = f"after step {t + 1}"
            self._unchanged(seen, None, before)
            self._check_step(seen, step)
            self._equal(step.seen, self.env.observe(), "observe() differs from the `seen` that step returned")
            moments.append(_copy(self._moment(step.seen, step)))
            kept.append((step.seen, step, moments[-1]))
            seen = step.seen
            over = np.flatnonzero(step.over).tolist()
            if over:
                seen = self._reset_some(seen, over, f"that followed step {t + 1}")
            if len(kept) > 3:
                self._unchanged(*kept.pop(0))
        for item in kept:
            self._unchanged(*item)
        lost = len(self.cut) > 0 and all(self.cut)
        _require(
            not lost,
            f"all {len(self.cut)} truncated agents ended with zeros: keep their final observation, values bootstrap from it",
        )
        return moments

    def abandon(self) -> None:
        """Leave an episode in its middle for another one."""
        self.play(1)
        self._reset_some(self.env.observe(), [0], "in mid-episode")

    def _reset_some(self, seen: Seen, copies: list[int], why: str) -> Seen:
        for array in (*self.met.values(), *self.ended.values(), *self.gone.values()):
            array[copies] = False
        self.env.reset(copies, self._seeds(copies))
        self.when = f"after the reset of copies {copies} {why}"
        after = self._check_seen(self.env.observe())
        rest = np.setdiff1d(np.arange(self.env.copies), copies)
        for name, old, new in _pairs(seen, after):
            _require(np.array_equal(old[rest], new[rest]), f"{self.when}, {name} of other copies changed")
        return after

    def _seeds(self, copies: list[int]) -> list[int]:
        return [int(self.random[copy].integers(2**31)) for copy in copies]

    def _actions(self, seen: Seen) -> dict[str, np.ndarray]:
        actions = {}
        for group in self.spec.groups:
            space, n = group.action_space, len(group.agents)
            kind = np.float32 if space.kind == "box" else np.int64
            rows = actions[group.name] = np.zeros((self.env.copies, n, *space.action_shape), kind)
            for copy, random in enumerate(self.random):
                mask = seen.action_mask[group.name][copy] if group.action_mask else np.ones((n, space.size), bool)
                rows[copy] = random_actions(space, mask, random)
        return actions

    def _check_seen(self, seen: Seen) -> Seen:
        copies = self.env.copies
        groups = {group.name: group for group in self.spec.groups}
        masked = {name for name, group in groups.items() if group.action_mask}
        for part, names in (("observation", set(groups)), ("action_mask", masked), ("active", set(groups))):
            _require(
                set(getattr(seen, part)) == names, f"{self.when}, {part} has groups {sorted(getattr(seen, part))}: {sorted(names)}"
            )
        acting = np.zeros(copies, int)
        for name, group in groups.items():
            n = len(group.agents)
            observation, active = seen.observation[name], seen.active[name]
            self._array(f"observation of {name}", observation, (copies, n, *group.observation_shape), np.float32)
            self._array(f"active of {name}", active, (copies, n), bool)
            acting += active.sum(1)
            self.met[name] |= active
            self._nobody(np.isnan(observation.reshape(copies, n, -1)).any(-1), name, "observes NaN")
            self._nobody(active & self.ended[name], name, "acts again after its episode has ended")
            if group.action_mask:
                mask, space = seen.action_mask[name], group.action_space
                self._array(f"action_mask of {name}", mask, (copies, n, space.size), bool)
                parts = np.split(mask, np.cumsum(space.choices)[:-1], -1)
                illegal = np.any([~part.any(-1) for part in parts], axis=0)
                self._nobody(np.logical_and(illegal, active), name, "acts but no action is legal")
                self._nobody(~mask.all(-1) & ~active, name, "doesn't act but its mask isn't all true")
            if not self.spec.turn_based:
                here = active | self.ended[name] & ~self.gone[name]  # who has just ended keeps its final observation
                self._nobody(observation.reshape(copies, n, -1).any(-1) & ~here, name, "isn't there but its observation isn't zero")
        if self.spec.turn_based:
            bad = np.flatnonzero(acting > 1)
            _require(
                not bad.size, f"{self.when}, {acting[bad[:1]]} agents act at once in copy {bad[:1]}, but the spec says turn_based"
            )
        state = self.env.state()
        self._array("state()", state, (copies, *self.spec.state_shape), np.float32)
        if self.spec.state_from == "observations":
            parts = [seen.observation[group.name].reshape(copies, -1) for group in self.spec.groups]
            same = np.array_equal(state, np.concatenate(parts, 1))
            _require(same, f"{self.when}, state() isn't the agents' observations one after the other, as state_from says")
        return seen

    def _check_step(self, before: Seen, step: Step) -> None:
        copies, over = self.env.copies, step.over
        self._array("over", over, (copies,), bool)
        acting = np.zeros(copies, int)
        for group in self.spec.groups:
            name, shape = group.name, (copies, len(group.agents))
            for part in ("reward", "terminated", "truncated"):
                _require(name in getattr(step, part), f"{self.when}, {part} has no group {name!r}")
            terminated, truncated, active = step.terminated[name], step.truncated[name], step.seen.active[name]
            self._array(f"reward of {name}", step.reward[name], shape, np.floating)
            self._array(f"terminated of {name}", terminated, shape, bool)
            self._array(f"truncated of {name}", truncated, shape, bool)
            self._nobody(~np.isfinite(step.reward[name]), name, "gets a reward that isn't finite")
            self._nobody(terminated & truncated, name, "is terminated and truncated at once")
            ends = terminated | truncated
            self._nobody(ends & self.ended[name], name, "ends a second time")
            self._nobody(ends & active, name, "ends and is still active")
            if not self.spec.turn_based:
                self._nobody(ends & ~before.active[name], name, "ends without having been active")
                self._nobody(before.active[name] & ~active & ~ends, name, "is inactive now but neither terminated nor truncated")
                self._nobody((step.reward[name] != 0) & ~before.active[name], name, "gets a reward without being there")
            gone = self.ended[name]  # before this step
            self._nobody(
                step.seen.observation[name].reshape(*shape, -1).any(-1) & gone, name, "has ended but its observation isn't zero"
            )
            saw, sees = (np.abs(seen.observation[name]).reshape(*shape, -1).max(-1) > 0 for seen in (before, step.seen))
            self.cut += (~sees)[truncated & saw].tolist()
            self.gone[name], self.ended[name] = gone.copy(), gone | ends
            acting += active.sum(1)
        self._check_seen(step.seen)
        for copy in range(copies):
            if over[copy]:
                _require(acting[copy] == 0, f"{self.when}, copy {copy} is over but {acting[copy]} of its agents are active")
                for group in self.spec.groups:
                    left = self.met[group.name][copy] & ~self.ended[group.name][copy]
                    who = [agent for agent, lost in zip(group.agents, left, strict=True) if lost]
                    _require(not who, f"{self.when}, copy {copy} is over but {who} ended neither terminated nor truncated")
            else:
                _require(acting[copy] > 0, f"{self.when}, nobody acts in copy {copy} but it isn't over")

    def _array(self, what: str, array: Any, shape: tuple[int, ...], kind: Any) -> None:
        _require(isinstance(array, np.ndarray), f"{self.when}, {what} is a {type(array).__name__}: expected a numpy array")
        _require(array.shape == shape, f"{self.when}, {what} has shape {array.shape}: expected {shape}")
        fits = np.issubdtype(array.dtype, kind)
        _require(
            fits,
            f"{self.when}, {what} has dtype {array.dtype}: expected {np.dtype(kind) if kind is not np.floating else 'a float'}",
        )

    def _nobody(self, who: Any, group: str, does: str) -> None:
        if who.any():
            copy, i = np.argwhere(who)[0]
            raise ContractError(f"{self.when}, {self.spec.group(group).agents[i]} in copy {self.places[copy]} {does}")

    def _equal(self, a: Seen, b: Seen, text: str) -> None:
        for name, one, two in _pairs(a, b):
            _require(np.array_equal(one, two), f"{self.when}, {text} ({name})")

    def _unchanged(self, seen: Seen, step: Step | None, then: Arrays) -> None:
        now = self._moment(seen, step, state=then["state"])
        for name in then:
            _require(
                np.array_equal(now[name], then[name]), f"{self.when}, {name} of an earlier step was written again; return copies"
            )

    def _moment(self, seen: Seen, step: Step | None, state: np.ndarray | None = None) -> Arrays:
        parts: dict[str, Mapping[str, np.ndarray]] = {**seen._asdict()}
        if step:
            parts |= {"reward": step.reward, "terminated": step.terminated, "truncated": step.truncated, "over": {"": step.over}}
        arrays = {f"{part} {name}".strip(): array for part, groups in parts.items() for name, array in groups.items()}
        return arrays | {"state": self.env.state() if state is None else state}


def _edges(env: EnvBatch) -> np.ndarray:
    return np.empty((0, 2), int) if env.spec.edges is None else env.spec.edges


def _require(holds: bool, text: str) -> None:
    if not holds:
        raise ContractError(text)


def _pairs(a: Seen, b: Seen) -> list[tuple[str, np.ndarray, np.ndarray]]:
    return [(f"{part} of {name}", x, getattr(b, part)[name]) for part, groups in a._asdict().items() for name, x in groups.items()]


def _copy(moment: Arrays) -> Arrays:
    return {name: array.copy() for name, array in moment.items()}


def _same(a: list[Arrays], b: list[Arrays], who: str) -> None:
    for t, (one, two) in enumerate(zip(a, b, strict=True)):
        for name in one:
            if not np.array_equal(one[name], two[name]):
                raise ContractError(f"{who} gave another {name} after {t} steps")
