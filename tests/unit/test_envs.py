"""Batched environments against the plain PettingZoo environments that they are made of."""

import numpy as np
import pytest
from gymnasium import spaces
from mpe2 import simple_speaker_listener_v4, simple_spread_v3
from pettingzoo import ParallelEnv

from marl_hpc.config import ConfigError
from marl_hpc.envs import ENVS, make
from marl_hpc.envs.grouping import group_agents
from marl_hpc.envs.parallel import ParallelBatch
from marl_hpc.envs.spaces import action_space, decoder, encoding, flat_mask
from marl_hpc.types import ActionSpace, EnvSpec


def random_returns(episodes, copies=50, **options):
    """Mean over agents of the summed reward of each episode of a random policy."""
    env = make("mpe/simple_spread", copies=copies, **options)
    random, returns = np.random.default_rng(0), []
    for first in range(0, episodes, copies):
        env.reset(list(range(copies)), list(range(first, first + copies)))
        total, steps, over = np.zeros(copies), 0, np.zeros(copies, bool)
        while not over.any():
            step = env.step({"shared": random.integers(0, 5, (copies, 3))})
            total, steps, over = total + step.reward["shared"].mean(1), steps + 1, step.over
        assert steps == 25
        assert over.all()
        returns += total.tolist()
    return np.array(returns)


def test_random_policy_gets_the_known_return_of_simple_spread():
    assert random_returns(1500).mean() == pytest.approx(-27.1, abs=0.5)


def test_random_policy_gets_the_known_return_without_local_rewards():
    assert random_returns(600, local_ratio=0.0).mean() == pytest.approx(-53.4, abs=1.0)


@pytest.mark.parametrize("groups", ["shared", "separate"])
def test_batch_is_the_plain_environment_step_by_step(groups):
    seeds = [11, 12, 13]
    batch = make("mpe/simple_speaker_listener", copies=3, groups=groups, max_cycles=7)
    plain = [simple_speaker_listener_v4.parallel_env(max_cycles=7) for _ in seeds]
    batch.reset([0, 1, 2], seeds)
    seen = [env.reset(seed=seed)[0] for env, seed in zip(plain, seeds, strict=True)]
    random = np.random.default_rng(0)
    places = {agent: (group.name, i) for group in batch.spec.groups for i, agent in enumerate(group.agents)}
    for t in range(7):
        observation, _, active = batch.observe()
        for b in range(3):
            for agent, (group, i) in places.items():
                assert np.array_equal(observation[group][b, i], seen[b][agent])
                assert active[group][b, i]
        actions = {group.name: random.integers(0, group.action_space.n, (3, len(group.agents))) for group in batch.spec.groups}
        step = batch.step(actions)
        for b, env in enumerate(plain):
            chosen = {agent: int(actions[group][b, i]) for agent, (group, i) in places.items()}
            seen[b], rewards, terminations, truncations, _ = env.step(chosen)
            for agent, (group, i) in places.items():
                assert np.array_equal(step.seen.observation[group][b, i], seen[b][agent])
                assert step.reward[group][b, i] == rewards[agent]
                assert step.terminated[group][b, i] == terminations[agent]
                assert step.truncated[group][b, i] == truncations[agent]
            assert step.over[b] == (not env.agents) == (t == 6)


def test_episodes_are_truncated_with_their_last_step_and_keep_its_observation():
    batch, plain = make("mpe/simple_spread", copies=2), simple_spread_v3.parallel_env()
    batch.reset([0, 1], [5, 6])
    plain.reset(seed=5)
    still = {"shared": np.full((2, 3), 1)}
    for t in range(25):
        step = batch.step(still)
        final = plain.step(dict.fromkeys(plain.agents, 1))[0]
        assert step.truncated["shared"].all() == step.truncated["shared"].any() == (t == 24)
        assert not step.terminated["shared"].any()
        assert step.over.all() == (t == 24)
    expected = np.stack([final[agent] for agent in batch.spec.groups[0].agents])
    assert np.array_equal(step.seen.observation["shared"][0], expected)
    assert not step.seen.active["shared"].any()
    batch.reset([0], [7])
    fresh = plain.reset(seed=7)[0]
    observation, _, active = batch.observe()
    assert np.array_equal(observation["shared"][0], np.stack([fresh[agent] for agent in batch.spec.groups[0].agents]))
    assert np.array_equal(step.seen.observation["shared"][0], expected)  # what was returned isn't written again
    assert active["shared"].tolist() == [[True] * 3, [False] * 3]


def test_one_copy_is_reset_while_the_others_go_on():
    batch = make("mpe/simple_spread", copies=2)
    batch.reset([0, 1], [1, 2])
    batch.step({"shared": np.ones((2, 3), int)})
    before = batch.observe()[0]["shared"].copy()
    batch.reset([1], [3])
    after = batch.observe()[0]["shared"]
    assert np.array_equal(before[0], after[0])
    assert not np.array_equal(before[1], after[1])


def test_agents_with_different_spaces_form_groups():
    env = make("mpe/simple_speaker_listener")
    assert [(group.name, group.agents, group.observation_shape, group.action_space.n) for group in env.spec.groups] == [
        ("speaker_0", ("speaker_0",), (3,), 3),
        ("listener_0", ("listener_0",), (11,), 5),
    ]


def test_agents_with_equal_spaces_share_unless_told_otherwise():
    assert [group.agents for group in make("mpe/simple_spread").spec.groups] == [("agent_0", "agent_1", "agent_2")]
    separate = make("mpe/simple_spread", groups="separate").spec.groups
    assert [(group.name, group.agents) for group in separate] == [(f"agent_{i}", (f"agent_{i}",)) for i in range(3)]


def test_mapping_decides_groups_and_actions_reach_their_agents():
    mapping = {"agent_0": "odd", "agent_1": "even", "agent_2": "odd"}
    batch, plain = make("mpe/simple_spread", groups=mapping), simple_spread_v3.parallel_env()
    assert [(group.name, group.agents) for group in batch.spec.groups] == [
        ("odd", ("agent_0", "agent_2")),
        ("even", ("agent_1",)),
    ]
    batch.reset([0], [4])
    plain.reset(seed=4)
    for _ in range(3):
        step = batch.step({"odd": np.array([[1, 2]]), "even": np.array([[3]])})
        seen = plain.step({"agent_0": 1, "agent_2": 2, "agent_1": 3})[0]
    assert np.array_equal(step.seen.observation["odd"][0], np.stack([seen["agent_0"], seen["agent_2"]]))
    assert np.array_equal(step.seen.observation["even"][0, 0], seen["agent_1"])


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("mpe/simple_sprad", {}, ["env.name='mpe/simple_sprad'", "did you mean 'mpe/simple_spread'?", "mpe/simple_tag"]),
        ("no_such_thing", {}, ["env.name='no_such_thing'", "known: ", "my_module:function"]),
        ("no_such_module:function", {}, ["no_such_module", "could not be imported"]),
        ("marl_hpc.envs.mpe:no_such_task", {}, ["no_such_task", "could not be imported"]),
        ("mpe/simple_spread", {"groups": "sharde"}, ["groups='sharde'", "shared, separate"]),
        ("mpe/simple_spread", {"groups": {"agent_0": "a"}}, ["missing ['agent_1', 'agent_2']"]),
        (
            "mpe/simple_speaker_listener",
            {"groups": {"speaker_0": "a", "listener_0": "a", "bystander": "b"}},
            ["unknown ['bystander']", "speaker_0"],
        ),
        (
            "mpe/simple_speaker_listener",
            {"groups": {"speaker_0": "a", "listener_0": "a"}, "continuous_actions": True},
            ["group 'a'", "spaces differ", "only vectors and discrete actions can be padded"],
        ),
        ("mpe/simple_spread", {"max_cycle": 5}, ["mpe/simple_spread", "max_cycle"]),
    ],
)
def test_what_does_not_exist_is_a_configuration_error(name, arguments, words):
    with pytest.raises(ConfigError) as caught:
        make(name, **arguments)
    assert [word for word in words if word not in str(caught.value)] == []


def test_option_that_a_users_function_does_not_take_is_a_configuration_error(monkeypatch):
    def meadow(size=3):
        return Meadow()

    monkeypatch.setitem(ENVS, "test/meadow", meadow)
    assert make("test/meadow", size=4).spec.name == "test/meadow"
    with pytest.raises(ConfigError, match=r"test/meadow.*'siz'.*it takes \(size=3\)"):
        make("test/meadow", siz=4)


def test_vectorized_function_gets_copies_and_groups(monkeypatch):
    def vectorized(copies, groups, size=1):
        return ParallelBatch(f"{size}", [Meadow() for _ in range(copies)], groups)

    monkeypatch.setitem(ENVS, "test/vectorized", vectorized)
    env = make("test/vectorized", copies=3, groups="separate", size=9)
    assert (env.copies, env.spec.name, len(env.spec.groups)) == (3, "9", 4)


@pytest.mark.parametrize("name", sorted(name for name in ENVS if name.startswith("mpe/")))
def test_every_task_makes_resets_and_steps(name):
    env = make(name, copies=2)
    env.reset([0, 1], [1, 2])
    actions = {group.name: np.zeros((2, len(group.agents)), int) for group in env.spec.groups}
    step = env.step(actions)
    for group in env.spec.groups:
        assert step.seen.observation[group.name].shape == (2, len(group.agents), *group.observation_shape)
        assert np.isfinite(step.seen.observation[group.name]).all()
        assert step.seen.active[group.name].all()
        assert np.isfinite(step.reward[group.name]).all()
    assert step.over.tolist() == [False, False]
    assert env.spec.version.startswith("mpe2 1.")
    assert EnvSpec.from_json(env.spec.to_json()) == env.spec
    env.close()


class Meadow(ParallelEnv):
    """`ant` (mask in its info) terminates with step 2, `bee` (mask in its observation) is truncated with step 3, `late` (a box) is born
    in step 2 and ends with `crab` (a box) in step 5, which is both a termination and a truncation."""

    metadata = {"name": "meadow_v0"}

    def __init__(self):
        self.possible_agents = ["ant", "bee", "crab", "late"]
        self.agents = []
        self.acted = []

    def observation_space(self, agent):
        vector = spaces.Box(-np.inf, np.inf, (2,))
        if agent == "bee":
            return spaces.Dict({"observation": vector, "action_mask": spaces.MultiBinary(3)})
        return vector

    def action_space(self, agent):
        if agent in ("ant", "bee"):
            return spaces.Discrete(3)
        return spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 1.0], np.float32))

    def mask(self, t):
        return np.arange(3) == t % 3

    def see(self, agent):
        vector = np.array([self.t, 1 + self.possible_agents.index(agent)], np.float32)
        return {"observation": vector, "action_mask": self.mask(self.t + 1)} if agent == "bee" else vector

    def tell(self):
        return {agent: {"action_mask": self.mask(self.t)} if agent == "ant" else {} for agent in self.possible_agents}

    def reset(self, seed=None, options=None):
        self.t, self.agents = 0, ["ant", "bee", "crab"]
        return {agent: self.see(agent) for agent in self.agents}, self.tell()

    def step(self, actions):
        assert sorted(actions) == sorted(self.agents)
        self.acted.append(actions)
        self.t += 1
        acting = list(self.agents)
        rewards = {agent: 10.0 * self.t + self.possible_agents.index(agent) for agent in acting}
        ends = {"ant": 2, "bee": 3, "crab": 5, "late": 5}
        terminations = {agent: agent != "bee" and self.t == ends[agent] for agent in acting}
        truncations = {agent: agent != "ant" and self.t == ends[agent] for agent in acting}
        if self.t == 2:
            acting.append("late")
        observations = {agent: self.see(agent) for agent in acting}
        self.agents = [agent for agent in acting if self.t != ends[agent]]
        return observations, rewards, terminations, truncations, self.tell()


ACT = {
    "ant": np.array([[1], [2]]),
    "bee": np.array([[0], [1]]),
    "crab": np.array([[[-1.5, 0.25], [9.0, 9.0]], [[0.5, 1.0], [7.0, 7.0]]], np.float32),
}


def meadow_batch():
    batch = ParallelBatch("meadow", [Meadow(), Meadow()], {"ant": "ant", "bee": "bee", "crab": "crab", "late": "crab"})
    batch.reset([0, 1], [1, 2])
    return batch


def test_agents_are_active_from_birth_to_death():
    batch = meadow_batch()
    observation, _, active = batch.observe()
    assert [active[name][0].tolist() for name in ("ant", "bee", "crab")] == [[True], [True], [True, False]]
    assert observation["crab"][0].tolist() == [[0, 3], [0, 0]]
    steps = [batch.step(ACT) for _ in range(5)]
    assert [step.seen.active["ant"][1, 0] for step in steps] == [True, False, False, False, False]
    assert [step.seen.active["bee"][1, 0] for step in steps] == [True, True, False, False, False]
    assert [step.seen.active["crab"][1].tolist() for step in steps] == [
        [True, False], [True, True], [True, True], [True, True], [False, False],
    ]  # fmt: skip
    assert [step.over.tolist() for step in steps] == [[False] * 2] * 4 + [[True] * 2]


def test_each_agent_ends_once_and_in_its_own_way():
    batch = meadow_batch()
    steps = [batch.step(ACT) for _ in range(5)]

    def when(kind, group, i=0):
        return [t + 1 for t, step in enumerate(steps) if getattr(step, kind)[group][0, i]]

    assert (when("terminated", "ant"), when("truncated", "ant")) == ([2], [])
    assert (when("terminated", "bee"), when("truncated", "bee")) == ([], [3])
    for i in range(2):  # an episode that is terminated and truncated at once is terminated
        assert (when("terminated", "crab", i), when("truncated", "crab", i)) == ([5], [])


def test_rewards_stop_with_the_agents_life():
    batch = meadow_batch()
    steps = [batch.step(ACT) for _ in range(5)]
    assert [step.reward["ant"][0, 0] for step in steps] == [10, 20, 0, 0, 0]
    assert [step.reward["bee"][0, 0] for step in steps] == [11, 21, 31, 0, 0]
    assert [step.reward["crab"][0].tolist() for step in steps] == [[12, 0], [22, 0], [32, 33], [42, 43], [52, 53]]


def test_final_observation_is_kept_and_a_dead_agents_place_is_zero_afterwards():
    batch = meadow_batch()
    steps = [batch.step(ACT) for _ in range(5)]
    assert steps[1].seen.observation["ant"][0, 0].tolist() == [2, 1]
    assert steps[2].seen.observation["bee"][0, 0].tolist() == [3, 2]
    assert steps[4].seen.observation["crab"][0].tolist() == [[5, 3], [5, 4]]
    assert [steps[t].seen.observation["ant"][0, 0].tolist() for t in (2, 3, 4)] == [[0, 0]] * 3
    assert [steps[t].seen.observation["bee"][0, 0].tolist() for t in (3, 4)] == [[0, 0]] * 2


def test_masks_come_from_info_or_from_the_observation():
    batch = meadow_batch()
    assert [(group.name, group.action_mask) for group in batch.spec.groups] == [("ant", True), ("bee", True), ("crab", False)]
    _, mask, _ = batch.observe()
    assert sorted(mask) == ["ant", "bee"]
    assert mask["ant"][0, 0].tolist() == [True, False, False]
    assert mask["bee"][0, 0].tolist() == [False, True, False]
    step = batch.step(ACT)
    assert step.seen.action_mask["ant"][1, 0].tolist() == [False, True, False]
    assert step.seen.action_mask["bee"][1, 0].tolist() == [False, False, True]
    for _ in range(4):
        step = batch.step(ACT)
        assert all(mask.any(-1).all() for mask in step.seen.action_mask.values())  # also of the dead: something stays legal


def test_living_agents_alone_get_the_actions_of_their_places():
    batch = meadow_batch()
    for _ in range(5):
        batch.step(ACT)
    acted = [batch.envs[b].acted for b in range(2)]
    assert [sorted(actions) for actions in acted[0]] == [
        ["ant", "bee", "crab"], ["ant", "bee", "crab"], ["bee", "crab", "late"], ["crab", "late"], ["crab", "late"],
    ]  # fmt: skip
    assert (acted[0][0]["ant"], acted[1][0]["ant"]) == (1, 2)
    assert isinstance(acted[0][0]["ant"], int)
    assert acted[1][2]["bee"] == 1
    assert acted[0][2]["crab"].tolist() == [-1.5, 0.25]
    assert acted[1][2]["late"].tolist() == [7, 7]


def test_reset_brings_a_copy_back_to_its_first_agents():
    batch = meadow_batch()
    first = batch.observe()
    for _ in range(5):
        batch.step(ACT)
    batch.reset([1], [3])
    observation, mask, active = batch.observe()
    for now, then in zip((observation, mask, active), first, strict=True):
        assert all(np.array_equal(now[name][1], then[name][1]) for name in then)
    assert not active["crab"][0].any()


def test_agents_with_masks_do_not_share_with_agents_without():
    env = ParallelBatch("meadow", [Meadow()])
    assert [group.agents for group in env.spec.groups] == [("ant", "bee"), ("crab", "late")]
    assert env.spec.group("crab").action_space == ActionSpace(kind="box", shape=(2,), low=(-2.0, 0.0), high=(2.0, 1.0))
    assert env.spec.version == "local meadow_v0" or env.spec.version.endswith("local meadow_v0")


class Quitter(ParallelEnv):
    """Both agents leave with step 2 and keep their observations, but no flag says why."""

    metadata = {"name": "quitter_v0"}
    possible_agents = ["a", "b"]

    def observation_space(self, agent):
        return spaces.Box(-1, 1, (1,))

    def action_space(self, agent):
        return spaces.Discrete(2)

    def reset(self, seed=None, options=None):
        self.t, self.agents = 0, ["a", "b"]
        return {agent: np.zeros(1, np.float32) for agent in self.agents}, {}

    def step(self, actions):
        self.t += 1
        gone = self.t == 2
        result = {agent: np.full(1, 0.5, np.float32) for agent in self.agents}
        nothing = dict.fromkeys(self.agents, False)
        rewards = dict.fromkeys(self.agents, 1.0)
        self.agents = [] if gone else self.agents
        return result, rewards, nothing, nothing, {}


def test_agent_that_leaves_without_a_flag_is_cut_off_from_the_next_episode():
    """Otherwise values of the next episode would leak into this one's advantages."""
    env = ParallelBatch("quitter", [Quitter()])
    env.reset([0], [0])
    step = env.step({"shared": np.zeros((1, 2), int)})
    assert not (step.terminated["shared"] | step.truncated["shared"]).any()
    step = env.step({"shared": np.zeros((1, 2), int)})
    assert step.over.all()
    assert (step.terminated["shared"] | step.truncated["shared"]).all()


class LateMask(Meadow):
    """`late` has the ant's spaces, and a mask in its info once it lives."""

    def __init__(self):
        super().__init__()
        self.possible_agents = ["ant", "crab", "late"]

    def action_space(self, agent):
        return spaces.Discrete(3) if agent == "late" else super().action_space(agent)

    def reset(self, seed=None, options=None):
        observations, infos = super().reset(seed)
        del observations["bee"], infos["late"]
        self.agents = ["ant", "crab"]
        return observations, infos

    def see(self, agent):
        return np.zeros(2, np.float32)

    def tell(self):
        return {agent: {"action_mask": self.mask(self.t)} for agent in ("ant", "late") if agent in self.possible_agents}


def test_mask_of_an_agent_born_late_is_heard():
    env = ParallelBatch("late", [LateMask()])
    group = next(group for group in env.spec.groups if "late" in group.agents)
    assert group.action_mask
    env.reset([0], [0])
    actions = {g.name: np.zeros((1, len(g.agents), *g.action_space.shape), int) for g in env.spec.groups}
    for _ in range(2):
        step = env.step(actions)
    assert step.seen.action_mask[group.name][0, group.agents.index("late")].tolist() == [False, False, True]


@pytest.mark.parametrize("offset", [0, 3])
def test_discrete_observations_become_one_number_a_choice(offset):
    class Signal(Quitter):
        def observation_space(self, agent):
            return spaces.Discrete(4, start=offset)

        def reset(self, seed=None, options=None):
            super().reset(seed)
            return {"a": offset, "b": offset + 3}, {}

    env = ParallelBatch("signal", [Signal()])
    env.reset([0], [0])
    assert env.spec.groups[0].observation_shape == (4,)
    assert env.observe()[0]["shared"][0].tolist() == [[1, 0, 0, 0], [0, 0, 0, 1]]


@pytest.mark.parametrize(
    ("space", "words"),
    [
        (spaces.MultiDiscrete([[2, 3]]), "one dimension"),
        (spaces.Text(3), "none of Discrete, MultiDiscrete, MultiBinary and Box"),
    ],
)
def test_spaces_that_no_policy_acts_in_are_refused_with_the_agents_name(space, words):
    with pytest.raises(ConfigError, match=rf"(?s)walker.*{words}"):
        action_space(space, "walker")


def test_observation_space_of_another_kind_is_refused():
    with pytest.raises(ConfigError, match="walker: observation space"):
        group_agents(["walker"], {"walker": spaces.Text(3)}, {"walker": spaces.Discrete(2)}, "shared")


def test_limits_are_kept_side_by_side():
    expected = ActionSpace(kind="box", shape=(2,), low=(-np.inf,) * 2, high=(3.0, 3.0))
    assert action_space(spaces.Box(-np.inf, 3, (2,)), "a") == expected


def test_environment_of_another_kind_is_refused_with_what_is_expected(monkeypatch):
    monkeypatch.setitem(ENVS, "test/object", object)
    with pytest.raises(TypeError, match=r"test/object.*expected a PettingZoo environment, parallel or turn-based"):
        make("test/object")


@pytest.mark.parametrize(
    ("space", "seen", "expected", "image"),
    [
        (spaces.MultiDiscrete([2, 3], start=[0, 5]), np.array([1, 6]), [0, 1, 0, 1, 0], False),
        (spaces.MultiDiscrete([2, 3]), [1, 2], [0, 1, 0, 0, 1], False),
        (spaces.MultiBinary(3), np.array([1, 0, 1]), [1, 0, 1], False),
        (spaces.Tuple([spaces.Discrete(2, start=4), spaces.Box(0, 9, (2, 1))]), (5, np.array([[3], [4]])), [0, 1, 3, 4], False),
        (
            spaces.Dict({"b": spaces.Box(0, 9, (2,)), "a": spaces.Dict({"c": spaces.MultiBinary(1)})}),
            {"a": {"c": [1]}, "b": [7, 8]},
            [1, 7, 8],
            False,
        ),
        (spaces.Box(0, 9, ()), 4.0, [4], False),
        (
            spaces.Box(0, 255, (1, 2, 3), np.uint8),
            np.array([[[0, 1, 2], [3, 200, 255]]], np.uint8),
            [[[0, 1, 2], [3, 200, 255]]],
            True,
        ),
        (spaces.Box(0, 1, (1, 1, 2), np.uint8), np.array([[[0, 1]]], np.uint8), [[[0, 1]]], False),
    ],
)
def test_observations_become_float32_arrays(space, seen, expected, image):
    shape, is_image, masked, encode = encoding(space, "a")
    assert (shape, is_image, masked) == (np.shape(expected), image, False)
    assert encode(seen).tolist() == expected
    assert encode(seen).dtype == np.float32
    both = spaces.Dict({"action_mask": spaces.MultiBinary(2), "observation": space})
    shape, is_image, masked, encode = encoding(both, "a")
    assert (shape, is_image, masked) == (np.shape(expected), image, True)
    assert encode({"observation": seen, "action_mask": [1, 0]}).tolist() == expected


def test_all_that_stands_beside_a_mask_is_observed():
    space = spaces.Dict({"action_mask": spaces.MultiBinary(2), "hand": spaces.Discrete(2), "table": spaces.Box(0, 9, (1,))})
    shape, _, masked, encode = encoding(space, "a")
    assert (shape, masked) == ((3,), True)
    assert encode({"action_mask": [1, 1], "hand": 1, "table": [5]}).tolist() == [0, 1, 5]


@pytest.mark.parametrize(
    ("space", "words"),
    [
        (spaces.Text(3), "can't become one array"),
        (spaces.Sequence(spaces.Discrete(2)), "can't become one array"),
        (spaces.Dict({"a": spaces.Discrete(2), "b": spaces.Text(3)}), "can't become one array"),
        (spaces.Tuple([spaces.Graph(spaces.Discrete(2), None)]), "a Dict or Tuple of those"),
        (spaces.Dict({"action_mask": spaces.MultiBinary(2)}), "nothing to observe"),
    ],
)
def test_observations_without_a_fixed_size_are_refused(space, words):
    with pytest.raises(ConfigError, match=rf"(?s)walker: observation space.*{words}"):
        encoding(space, "walker")


@pytest.mark.parametrize(
    ("space", "expected", "action", "given"),
    [
        (spaces.Discrete(3, start=-1), ActionSpace(kind="discrete", n=3), np.int64(2), 1),
        (spaces.MultiDiscrete([2, 3], start=[1, -1]), ActionSpace(kind="multi_discrete", nvec=(2, 3)), np.array([1, 0]), [2, -1]),
        (spaces.MultiBinary([2, 2]), ActionSpace(kind="multi_discrete", nvec=(2,) * 4), np.array([1, 0, 0, 1]), [[1, 0], [0, 1]]),
        (
            spaces.Box(-1, 1, (2, 1)),
            ActionSpace(kind="box", shape=(2, 1), low=(-1.0,) * 2, high=(1.0,) * 2),
            np.array([0.5, -0.5]),
            [[0.5], [-0.5]],
        ),
    ],
)
def test_actions_start_at_zero_in_batches_and_where_the_environment_wants_in_it(space, expected, action, given):
    assert action_space(space, "a") == expected
    sent = decoder(space)(action)
    assert np.asarray(sent).tolist() == given
    assert space.contains(sent)


def test_masks_of_several_choices_come_in_parts_or_in_one():
    parts = flat_mask((np.array([1, 0]), np.array([0, 1, 1])), (2, 3), "a")
    assert parts.tolist() == flat_mask(np.array([1, 0, 0, 1, 1], np.int8), (2, 3), "a").tolist() == [True, False, False, True, True]
    assert flat_mask([True, False], (2,), "a").tolist() == [True, False]
    assert flat_mask(np.zeros(5, np.int8), (2, 3), "a").tolist() == [True, False, True, False, False]  # nothing is legal
    with pytest.raises(ValueError, match="walker: its action mask has 5 entries, its action space 6 choices"):
        flat_mask(parts, (3, 3), "walker")


class Mixed(Quitter):
    """`a` sees two numbers and has three actions, masked; `b` sees one and has two, which start at 1. Both act for good."""

    def observation_space(self, agent):
        return spaces.Box(-9, 9, (2 if agent == "a" else 1,))

    def action_space(self, agent):
        return spaces.Discrete(3) if agent == "a" else spaces.Discrete(2, start=1)

    def see(self):
        return {"a": np.array([3, 4], np.float32), "b": np.array([5], np.float32)}, {
            "a": {"action_mask": np.array([0, 1, 1])},
            "b": {},
        }

    def reset(self, seed=None, options=None):
        self.agents = ["a", "b"]
        return self.see()

    def step(self, actions):
        self.acted = actions
        nothing = dict.fromkeys(self.agents, False)
        return self.see()[0], dict.fromkeys(self.agents, 0.0), nothing, nothing, self.see()[1]


def test_group_of_unlike_agents_is_padded_where_the_user_asks_for_it():
    env = ParallelBatch("mixed", [Mixed()], {"a": "all", "b": "all"})
    (group,) = env.spec.groups
    assert (group.observation_shape, group.action_space.n, group.action_mask) == ((2,), 3, True)
    assert env.spec.version.endswith("; group all padded: observations to 2, actions to 3")
    assert env.spec.state_shape == (4,)
    env.reset([0], [0])
    assert env.observe().observation["all"][0].tolist() == [[3, 4], [5, 0]]
    assert env.observe().action_mask["all"][0].tolist() == [[False, True, True], [True, True, False]]
    env.step({"all": np.array([[2, 1]])})
    assert env.envs[0].acted == {"a": 2, "b": 2}
    shared = ParallelBatch("mixed", [Mixed()])
    assert [group.name for group in shared.spec.groups] == ["a", "b"]
    assert "padded" not in shared.spec.version


@pytest.mark.parametrize(
    ("observation", "action"),
    [
        (spaces.Box(0, 255, (4, 4, 3), np.uint8), spaces.Discrete(2)),
        (spaces.Box(0, 1, (2, 2)), spaces.Discrete(2)),
        (spaces.Box(0, 1, (2,)), spaces.Box(0, 1, (2,))),
        (spaces.Box(0, 1, (2,)), spaces.MultiDiscrete([2, 2])),
    ],
)
def test_what_can_not_be_padded_is_refused(observation, action):
    seen = {"a": spaces.Box(0, 1, (2,)), "b": observation}
    acts = {"a": spaces.Discrete(2), "b": action}
    with pytest.raises(ConfigError, match=r"group 'all'.*b: observation.*only vectors and discrete actions can be padded"):
        group_agents(["a", "b"], seen, acts, {"a": "all", "b": "all"})


class Unmasked(Mixed):
    def reset(self, seed=None, options=None):
        super().reset()
        return self.see()[0], {}


def test_mask_that_nobody_announced_is_an_error_and_not_ignored():
    env = ParallelBatch("unmasked", [Unmasked()])
    env.reset([0], [0])
    with pytest.raises(ValueError, match="unmasked: a has an action mask in its info now"):
        env.step({"a": np.array([[0]]), "b": np.array([[0]])})


class Forgetful(Quitter):
    def step(self, actions):
        seen, *rest = super().step(actions)
        return {"b": seen["b"]}, *rest


def test_living_agent_without_an_observation_is_an_error():
    env = ParallelBatch("forgetful", [Forgetful()])
    env.reset([0], [0])
    with pytest.raises(ValueError, match="forgetful: a lives on after the step but has no observation"):
        env.step({"shared": np.zeros((1, 2), int)})
