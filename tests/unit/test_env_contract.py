"""The contract suite for environments: it lets a good environment pass and says what is wrong with each broken one."""

from dataclasses import replace

import numpy as np
import pytest

from marl_hpc.envs.batch import copy_seen, empty_seen, empty_step
from marl_hpc.testing import ContractError, env_contract, random_actions
from marl_hpc.types import ActionSpace, EnvSpec, GroupSpec

GROUP = GroupSpec(
    name="walkers", agents=("ann", "bob"), observation_shape=(3,), action_space=ActionSpace(kind="discrete", n=3), action_mask=True
)


class Walk:
    """Each walks by its action; bob dies in step 3, ann is cut off in step 5. Going beyond ±4 is masked."""

    spec = EnvSpec(name="walk", version="1", groups=(GROUP,), state_shape=(6,), state_from="observations")

    def __init__(self, copies):
        self.copies = copies
        self.now = empty_seen((GROUP,), copies)
        self.random = [np.random.default_rng()] * copies
        self.at, self.t = np.zeros((copies, 2)), np.zeros(copies, int)
        self.over = np.ones(copies, bool)

    def reset(self, copies, seeds):
        for copy, seed in zip(copies, seeds, strict=True):
            self.random[copy] = np.random.default_rng(seed)
            self.at[copy], self.t[copy], self.over[copy] = self.random[copy].integers(-3, 4, 2), 0, False
            self.now.active["walkers"][copy] = True
            self.write(copy)

    def write(self, copy):
        seen = np.stack([self.at[copy], np.full(2, self.t[copy] + 1), [1, 2]], -1)
        gone = self.t[copy] > np.array([5, 3])
        self.now.observation["walkers"][copy] = np.where(gone[:, None], 0, seen)
        legal = np.stack([self.at[copy] > -4, [True, True], self.at[copy] < 4], -1)
        self.now.action_mask["walkers"][copy] = legal | ~self.now.active["walkers"][copy][:, None]

    def observe(self):
        return copy_seen(self.now)

    def state(self):
        return self.now.observation["walkers"].reshape(self.copies, 6).copy()

    def step(self, actions):
        result = empty_step((GROUP,), self.copies)
        for copy in range(self.copies):
            if not self.over[copy]:
                self.walk(copy, actions["walkers"][copy], result)
            result.over[copy] = self.over[copy]
        return result._replace(seen=self.observe())

    def walk(self, copy, actions, result):
        active = self.now.active["walkers"]
        assert self.now.action_mask["walkers"][copy][[0, 1], actions].all()
        self.t[copy] += 1
        self.at[copy] += np.where(active[copy], actions - 1, 0)
        result.reward["walkers"][copy] = np.where(active[copy], -abs(self.at[copy]), 0)
        result.terminated["walkers"][copy, 1] = self.t[copy] == 3
        result.truncated["walkers"][copy, 0] = self.t[copy] == 5
        active[copy] = self.t[copy] < np.array([5, 3])
        self.over[copy] = self.t[copy] == 5
        self.write(copy)

    def close(self):
        pass


def edit(part, change):
    """A Walk whose step is changed afterwards: `change(env, array)` edits the group's array in place, or returns another one."""

    class Edited(Walk):
        def step(self, actions):
            result = super().step(actions)
            holder = result.seen if part in result.seen._fields else result
            if part == "over":
                return result._replace(over=change(self, result.over))
            array = getattr(holder, part)["walkers"]
            changed = change(self, array)
            getattr(holder, part)["walkers"] = array if changed is None else changed
            if holder is result.seen:  # what observe() says, too
                getattr(self.now, part)["walkers"] = getattr(holder, part)["walkers"].copy()
            return result

    return Edited


class Wrong:
    """Environments that break one promise each."""

    class Auto(Walk):
        def step(self, actions):
            result = super().step(actions)
            done = np.flatnonzero(result.over).tolist()
            self.reset(done, [0] * len(done))
            return result._replace(seen=self.observe())

    class Views(Walk):
        def observe(self):
            return self.now

    class Unseeded(Walk):
        def reset(self, copies, seeds):
            super().reset(copies, np.random.default_rng().integers(0, 99, len(seeds)))

    class History(Walk):
        episodes = 0

        def reset(self, copies, seeds):
            super().reset(copies, [seed + self.episodes for seed in seeds])
            self.episodes += len(copies)

    class Leaking(Walk):
        def walk(self, copy, actions, result):
            super().walk(copy, actions, result)
            result.reward["walkers"][copy] += self.at.mean() * (result.reward["walkers"][copy] != 0)

    class ResetsAll(Walk):
        def reset(self, copies, seeds):
            super().reset(copies, seeds)
            self.t[:] = 0
            for copy in range(self.copies):
                self.write(copy)

    class Stale(Walk):
        def observe(self):
            seen = super().observe()
            seen.observation["walkers"][:, 0, 1] = 1
            return seen

        def step(self, actions):
            result = super().step(actions)
            return result._replace(seen=copy_seen(self.now))

    class LosesFinal(Walk):
        def write(self, copy):
            super().write(copy)
            ended = ~self.now.active["walkers"][copy]
            self.now.observation["walkers"][copy][ended] = 0

    class Lingers(Walk):
        def write(self, copy):
            super().write(copy)
            self.now.observation["walkers"][copy][1] = 1

    class NoAction(Walk):
        def write(self, copy):
            super().write(copy)
            self.now.action_mask["walkers"][copy] &= self.t[copy] != 2

    class State(Walk):
        def state(self):
            return super().state()[:, ::-1].copy()

    class StateType(Walk):
        def state(self):
            return super().state().astype(np.float64)

    class Turns(Walk):
        spec = replace(Walk.spec, turn_based=True)

    class Copies(Walk):
        def __init__(self, copies):
            super().__init__(copies + 1)

    class Twins(Walk):
        spec = replace(Walk.spec, groups=(replace(GROUP, agents=("ann", "ann")),))


def at(t, value):
    def change(env, array):
        array[env.t == t] = value

    return change


BROKEN = {
    "auto-reset": (Wrong.Auto, "ann in copy 0 (ends and is still active|acts again)"),
    "views": (Wrong.Views, "of an earlier step was written again; return copies"),
    "unseeded": (Wrong.Unseeded, "the same seeds again, gave another observation walkers after 0 steps"),
    "depends on earlier episodes": (Wrong.History, "the same seeds again, gave another observation walkers after 0 steps"),
    "copies touch": (Wrong.Leaking, "only copy 0 of three.*gave another reward walkers after 1 steps"),
    "reset touches other copies": (Wrong.ResetsAll, "observation of walkers of other copies changed"),
    "observe differs": (Wrong.Stale, r"after step 1, observe\(\) differs from the `seen` that step returned"),
    "final observation lost": (Wrong.LosesFinal, "truncated agents ended with zeros: keep their final observation"),
    "dead place not zero": (Wrong.Lingers, "after step 4, bob in copy 0 has ended but its observation isn't zero"),
    "nothing legal": (Wrong.NoAction, "after step 2, ann in copy 0 acts but no action is legal"),
    "state in another order": (Wrong.State, r"state\(\) isn't the agents' observations"),
    "state of another type": (Wrong.StateType, r"state\(\) has dtype float64: expected float32"),
    "not turn-based": (Wrong.Turns, "agents act at once in copy .*spec says turn_based"),
    "copies": (Wrong.Copies, r"make\(3\) gave an environment with copies=4"),
    "agent twice": (Wrong.Twins, "expected at least one, each once"),
    "observation shape": (edit("observation", lambda env, a: a[..., :2]), r"shape \(3, 2, 2\): expected \(3, 2, 3\)"),
    "observation type": (edit("observation", lambda env, a: a.astype(float)), "has dtype float64: expected float32"),
    "observation NaN": (edit("observation", at(2, np.nan)), "after step 2, ann in copy 0 observes NaN"),
    "active type": (edit("active", lambda env, a: a.astype(int)), "active of walkers has dtype int64: expected bool"),
    "reward shape": (edit("reward", lambda env, a: a[:, 0]), r"reward of walkers has shape \(3,\): expected \(3, 2\)"),
    "reward type": (edit("reward", lambda env, a: a.astype(int)), "reward of walkers has dtype int64: expected a float"),
    "reward NaN": (edit("reward", at(1, np.nan)), "ann in copy 0 gets a reward that isn't finite"),
    "reward of the dead": (edit("reward", at(4, 1.0)), "after step 4, bob in copy 0 gets a reward without being there"),
    "terminated list": (edit("terminated", lambda env, a: a.tolist()), "terminated of walkers is a list"),
    "both ends": (edit("terminated", at(5, True)), "after step 5, ann in copy 0 is terminated and truncated at once"),
    "ends twice": (edit("terminated", at(4, [False, True])), "after step 4, bob in copy 0 ends a second time"),
    "ends but active": (edit("active", at(3, True)), "after step 3, bob in copy 0 ends and is still active"),
    "end unsaid": (edit("terminated", at(3, False)), "after step 3, bob in copy 0 is inactive now but neither"),
    "acts again": (edit("active", at(4, True)), "after step 4, bob in copy 0 acts again after its episode has ended"),
    "over too early": (edit("over", lambda env, a: env.t >= 4), "after step 4, copy 0 is over but 1 of its agents are active"),
    "never over": (edit("over", lambda env, a: a & False), "after step 5, nobody acts in copy 0 but it isn't over"),
    "over type": (edit("over", lambda env, a: a.astype(int)), "over has dtype int64"),
    "mask of the dead": (edit("action_mask", at(4, [True, False, False])), "after step 4, bob in copy 0 doesn't act but its mask"),
}


def test_good_environment_passes():
    env_contract(Walk, 30)


@pytest.mark.parametrize("name", BROKEN)
def test_broken_environment_is_caught_and_told_what_broke(name):
    make, words = BROKEN[name]
    with pytest.raises(ContractError, match=words):
        env_contract(make, 30)


def test_random_actions_are_legal_and_reach_every_legal_one():
    random = np.random.default_rng(0)
    space = ActionSpace(kind="multi_discrete", nvec=(2, 3))
    mask = np.array([[1, 0, 0, 1, 1], [1, 1, 1, 0, 0]], bool)
    drawn = np.stack([random_actions(space, mask, random) for _ in range(60)])
    assert [sorted(set(map(tuple, drawn[:, i].tolist()))) for i in range(2)] == [[(0, 1), (0, 2)], [(0, 0), (1, 0)]]
    box = ActionSpace(kind="box", shape=(3,), low=(-np.inf, 2.0, -np.inf), high=(np.inf, np.inf, -5.0))
    drawn = np.stack([random_actions(box, np.ones((1, 3), bool), random)[0] for _ in range(60)])
    assert (drawn.min(0) >= [-1, 2, -6]).all()
    assert (drawn.max(0) <= [1, 3, -5]).all()
    assert (np.ptp(drawn, 0) > 0.8).all()
