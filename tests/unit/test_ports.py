"""Ports of other packages' environments against the originals, step by step over random play."""

import gymnasium
import numpy as np
import pytest
from lbforaging.foraging import ForagingEnv
from mpe2 import simple_speaker_listener_v4, simple_spread_v3

from marl_hpc.compose import compose
from marl_hpc.config import ConfigError
from marl_hpc.envs import make
from marl_hpc.types import EnvSpec

STEPS = 10_000
ORIGINALS = {"simple_spread": simple_spread_v3, "simple_speaker_listener": simple_speaker_listener_v4}


def random_actions(env, random):
    """Actions of every group, uniform; of a box also a little beyond its limits."""
    chosen = {}
    for group in env.spec.groups:
        shape = (env.copies, len(group.agents))
        if group.action_space.kind == "discrete":
            chosen[group.name] = random.integers(0, group.action_space.n, shape)
        else:
            chosen[group.name] = random.uniform(-0.1, 1.1, (*shape, group.action_space.size)).astype(np.float32)
    return chosen


def compare_with_mpe2(task, copies=8, steps=STEPS, groups="shared", **options):
    """Play `steps` environment steps on both sides; how often each thing happened that has to be compared."""
    env = make(f"mpe_fast/{task}", copies=copies, groups=groups, **options)
    plain = [ORIGINALS[task].parallel_env(**options) for _ in range(copies)]
    places = {agent: (group.name, i) for group in env.spec.groups for i, agent in enumerate(group.agents)}
    random, seed = np.random.default_rng(0), 0
    counts = {"terminated": 0, "truncated": 0, "touched": 0}
    over = np.ones(copies, bool)
    for t in range(steps // copies):
        ended = np.flatnonzero(over).tolist()
        seeds = list(range(seed, seed := seed + len(ended)))
        env.reset(ended, seeds)
        observation = env.observe().observation
        for b, s in zip(ended, seeds, strict=True):
            seen = plain[b].reset(seed=s)[0]
            for agent, (group, i) in places.items():
                assert np.abs(observation[group][b, i] - seen[agent]).max() <= 1e-6
        actions = random_actions(env, random)
        step = env.step(actions)
        state = env.state()
        over = step.over
        expected = [{group: np.zeros_like(array) for group, array in part.items()} for part in (step.seen.observation, *step[1:4])]
        for b, original in enumerate(plain):
            chosen = {agent: actions[group][b, i] for agent, (group, i) in places.items()}
            if not options.get("continuous_actions"):
                chosen = {agent: int(action) for agent, action in chosen.items()}
            answer = original.step(chosen)
            for agent, (group, i) in places.items():
                for part, given in zip(expected, answer, strict=False):
                    part[group][b, i] = given[agent]
            counts["touched"] += len(set(answer[1].values())) > 1
            assert over[b] == (not original.agents)
        for group in actions:
            assert np.abs(step.seen.observation[group] - expected[0][group]).max() <= 1e-6
            assert np.abs(step.reward[group] - expected[1][group]).max() <= 1e-6
            assert np.array_equal(step.terminated[group], expected[2][group])
            assert np.array_equal(step.truncated[group], expected[3][group])
            counts["terminated"] += step.terminated[group].sum()
            counts["truncated"] += step.truncated[group].sum()
        if t % 10 == 0:
            assert np.abs(state - [original.state() for original in plain]).max() <= 1e-6
    return counts


@pytest.mark.filterwarnings("ignore:Action")
@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("simple_spread", {}),
        ("simple_spread", {"continuous_actions": True}),
        ("simple_speaker_listener", {}),
        ("simple_speaker_listener", {"continuous_actions": True}),
    ],
)
def test_port_is_mpe2_step_by_step(task, options):
    counts = compare_with_mpe2(task, **options)
    assert counts["truncated"] >= STEPS // 25
    if task == "simple_spread":
        assert counts["touched"] > STEPS / 20


@pytest.mark.parametrize(
    "options",
    [
        {"N": 1, "max_cycles": 7},
        {"N": 2, "local_ratio": 0.0, "groups": {"agent_0": "a", "agent_1": "b"}},
        {"N": 7, "local_ratio": 1.0},
        {"N": 5, "num_agent_neighbors": 2, "num_landmark_neighbors": 3},
        {"N": 3, "num_agent_neighbors": 4, "num_landmark_neighbors": 5, "groups": "separate"},
    ],
    ids=str,
)
def test_port_of_simple_spread_follows_the_options_of_mpe2(options):
    assert compare_with_mpe2("simple_spread", steps=800, **options)["truncated"]


def test_port_of_simple_spread_terminates_on_success_as_mpe2_does():
    counts = compare_with_mpe2("simple_spread", steps=4000, N=1, max_cycles=50, terminate_on_success=True)
    assert counts["terminated"] > 5
    assert counts["truncated"] > 5


@pytest.mark.parametrize(("local_ratio", "known"), [(0.5, -27.1), (0.0, -53.4)])
def test_random_play_of_simple_spread_gets_the_known_return(local_ratio, known):
    env = make("mpe_fast/simple_spread", copies=3000, local_ratio=local_ratio)
    random, total = np.random.default_rng(0), 0.0
    env.reset(list(range(3000)), list(range(3000)))
    for _ in range(25):
        total += env.step(random_actions(env, random)).reward["shared"].mean(1)
    assert total.mean() == pytest.approx(known, rel=0.02)


@pytest.mark.parametrize("task", ["simple_spread", "simple_speaker_listener"])
def test_spec_is_the_originals_but_for_name_and_version(task):
    for options in ({}, {"continuous_actions": True}, {"groups": "separate"}):
        ours, theirs = make(f"mpe_fast/{task}", **options).spec, make(f"mpe/{task}", **options).spec
        assert {**ours.to_json(), "name": "", "version": ""} == {**theirs.to_json(), "name": "", "version": ""}
        assert ours.version.startswith("marl_hpc ")
        assert ours.version.endswith(f" port of mpe2 1.1.1 {task}_v{4 if 'speaker' in task else 3}")
        assert EnvSpec.from_json(ours.to_json()) == ours


FORAGING = {
    "players": 2, "size": 8, "max_num_food": 2, "sight": 8, "force_coop": True, "max_episode_steps": 50,
    "min_player_level": 1, "max_player_level": 2, "min_food_level": 1, "max_food_level": None, "penalty": 0.0,
}  # fmt: skip


def compare_with_lbforaging(name="foraging", copies=8, steps=STEPS, **changed):
    """Play `steps` environment steps on both sides; how often each thing happened that has to be compared."""
    options = {**FORAGING, **changed}
    env = make(f"lbf_fast/{name}", copies=copies, **options)
    size = options.pop("size")
    plain = [ForagingEnv(**options, field_size=(size, size)) for _ in range(copies)]
    random, seed = np.random.default_rng(0), 0
    counts = {"paid": 0, "fined": 0, "cleared": 0, "late": 0, "crowded": 0, "hidden": 0}
    over = np.ones(copies, bool)
    for _ in range(steps // copies):
        ended = np.flatnonzero(over).tolist()
        seeds = list(range(seed, seed := seed + len(ended)))
        env.reset(ended, seeds)
        observation = env.observe().observation["shared"]
        for b, s in zip(ended, seeds, strict=True):
            for player in plain[b].players:
                player.position = None  # as in a new environment: where players stood last is in no seed
            assert np.array_equal(observation[b], plain[b].reset(seed=s)[0])
        # who stands beside food mostly loads, so that enough is loaded
        food = observation[..., : 3 * env.food].reshape(copies, env.players, -1, 3)[..., :2]
        away = np.abs(food - observation[..., None, 3 * env.food : 3 * env.food + 2]).sum(-1)
        load = (away == 1).any(-1) & (random.random((copies, env.players)) < 0.8)
        actions = np.where(load, 5, random.integers(0, 6, (copies, env.players)))
        step = env.step({"shared": actions})
        over = step.over
        for b, original in enumerate(plain):
            seen, rewards, done, cut, _ = original.step(actions[b].tolist())
            assert np.array_equal(step.seen.observation["shared"][b], seen)
            assert np.abs(step.reward["shared"][b] - rewards).max() <= 1e-12
            assert step.terminated["shared"][b].tolist() == [done] * env.players
            assert not step.truncated["shared"].any()
            assert not cut
            counts["paid"] += max(rewards) > 0
            counts["fined"] += min(rewards) < 0
            counts["cleared"] += bool(done and original.field.sum() == 0)
            counts["late"] += bool(done and original.field.sum() > 0)
            counts["crowded"] += len({player.position for player in original.players}) < env.players
            counts["hidden"] += (seen[0][-3:] == [-1, -1, 0]).all()
    return counts


def test_port_is_lbforaging_step_by_step():
    counts = compare_with_lbforaging("8x8-2p-2f-coop")
    assert counts["late"] > 50
    assert counts["paid"] > 30
    assert counts["cleared"]


@pytest.mark.parametrize(
    ("options", "happens"),
    [
        (
            {"size": 5, "players": 5, "max_num_food": 3, "force_coop": False, "penalty": 0.1},
            ["paid", "fined", "cleared", "crowded"],
        ),
        ({"size": 9, "players": 3, "max_num_food": 4, "sight": 2, "force_coop": False}, ["paid", "hidden", "late"]),
        ({"size": 9, "players": 3, "sight": 3, "min_player_level": [1, 2, 3], "max_player_level": [4, 2, 3]}, ["hidden"]),
        (
            {"size": 6, "min_food_level": [1, 2], "max_food_level": [3, 2], "normalize_reward": False, "force_coop": False},
            ["paid", "cleared"],
        ),
        ({"size": 5, "max_num_food": 4, "max_player_level": 1, "observe_agent_levels": False}, ["late"]),
    ],
    ids=str,
)
def test_port_follows_the_options_of_lbforaging(options, happens):
    counts = compare_with_lbforaging(steps=2400, **options)
    assert [what for what in happens if not counts[what]] == []


def test_random_play_of_foraging_gets_the_known_return():
    env = make("lbf_fast/8x8-2p-2f-coop", copies=1000)
    random, total = np.random.default_rng(0), 0.0
    env.reset(list(range(1000)), list(range(1000)))
    for _ in range(50):
        total += env.step(random_actions(env, random)).reward["shared"].mean(1)
    assert total.mean() == pytest.approx(0.005, abs=0.004)


def test_limit_of_foraging_may_truncate():
    env = make("lbf_fast/foraging", copies=2, max_episode_steps=3, truncate_at_limit=True)
    env.reset([0, 1], [0, 1])
    for t in range(3):
        step = env.step({"shared": np.zeros((2, 2), int)})
        assert step.truncated["shared"].all() == step.truncated["shared"].any() == step.over.all() == (t == 2)
        assert not step.terminated["shared"].any()


def test_version_of_foraging_names_the_registered_task():
    assert make("lbf_fast/8x8-2p-2f-coop").spec.version.endswith(" port of lbforaging 2.0.0 Foraging-8x8-2p-2f-coop-v3")
    task = make("lbf_fast/foraging", players=3, size=10, max_num_food=3, sight=2, force_coop=False).spec
    assert (task.name, task.state_shape) == ("lbf_fast/2s-10x10-3p-3f", (54,))
    name = task.version.rpartition(" ")[2]
    assert gymnasium.make(name).observation_space[0].shape == (18,)
    assert make("lbf_fast/foraging", penalty=0.1).spec.version.endswith(" port of lbforaging 2.0.0 ForagingEnv")


@pytest.mark.parametrize(
    "name", ["mpe_fast/simple_spread", "mpe_fast/simple_speaker_listener", "lbf_fast/8x8-2p-2f-coop", "lbf_fast/foraging"]
)
def test_configuration_of_every_port_makes_it(name):
    env = make(copies=2, **compose([f"env={name}"]).env)
    assert EnvSpec.from_json(env.spec.to_json()) == env.spec
    env.reset([0, 1], [3, 3])
    state = env.state()
    assert state.shape == (2, *env.spec.state_shape)
    assert np.array_equal(state[0], state[1])
    env.close()


@pytest.mark.parametrize("name", ["mpe_fast/simple_spread", "mpe_fast/simple_speaker_listener", "lbf_fast/8x8-2p-2f-coop"])
def test_copies_play_alike_beside_whatever_others(name):
    """Also when the others wait for their reset, have never been reset, or are reset in between."""
    many, one = make(name, copies=3), make(name)
    random = np.random.default_rng(0)
    one.reset([0], [5])
    many.reset([0, 1], [1, 5])
    for t in range(25):
        actions = random_actions(many, random)
        if t in (3, 9):
            many.reset([2], [t])
        wide, narrow = many.step(actions), one.step({group: array[1:2] for group, array in actions.items()})
        for group in actions:
            assert np.array_equal(wide.seen.observation[group][1], narrow.seen.observation[group][0])
            assert np.array_equal(wide.reward[group][1], narrow.reward[group][0])
            if t < 3:
                assert not wide.seen.active[group][2].any()
                assert not wide.seen.observation[group][2].any()
                assert not wide.reward[group][2].any()
    kept = {group: array.copy() for group, array in wide.seen.observation.items()}
    many.reset([0, 1, 2], [7, 8, 9])
    many.step(random_actions(many, random))
    assert all(np.array_equal(wide.seen.observation[group], array) for group, array in kept.items())


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("mpe_fast/simple_spread", {"N": 0}, ["N=0"]),
        ("mpe_fast/simple_spread", {"local_ratio": 1.5}, ["local_ratio=1.5", "between 0 and 1"]),
        ("mpe_fast/simple_spread", {"num_agent_neighbors": 0}, ["num_agent_neighbors=0"]),
        ("mpe_fast/simple_spread", {"curriculum": True}, ["curriculum", "it takes"]),
        ("mpe_fast/simple_speaker_listener", {"max_cycles": 0}, ["max_cycles=0"]),
        ("lbf_fast/foraging", {"size": 2}, ["size=2", "at least 3"]),
        ("lbf_fast/foraging", {"max_num_food": 0}, ["max_num_food=0"]),
        ("lbf_fast/foraging", {"max_player_level": [1, 2, 3]}, ["max_player_level=[1, 2, 3]", "2 of them"]),
        ("lbf_fast/foraging", {"min_food_level": 3, "max_food_level": 2}, ["min_food_level=3", "max_food_level=2"]),
    ],
)
def test_ports_that_can_not_be_are_refused(name, options, words):
    with pytest.raises(ConfigError) as caught:
        make(name, **options)
    assert [word for word in words if word not in str(caught.value)] == []


def test_players_without_a_place_are_an_error():
    env = make("lbf_fast/foraging", size=3, players=10)
    with pytest.raises(ValueError, match="no place for 10 players was found on 3 x 3 cells"):
        env.reset([0], [0])
