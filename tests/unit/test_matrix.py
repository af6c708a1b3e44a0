"""Games solved on paper: what they pay, when they end, and what agents can know."""

import itertools

import numpy as np
import pytest

from marl_hpc.compose import compose
from marl_hpc.config import ConfigError
from marl_hpc.envs import make
from marl_hpc.types import EnvSpec


def episode(env, choose, seeds=None):
    """(return [B, N], length): choose(t, observation) gives actions [B, N]."""
    env.reset(list(range(env.copies)), seeds or list(range(env.copies)))
    total, steps, over = 0.0, 0, np.zeros(1, bool)
    while not over.all():
        step = env.step({"shared": choose(steps, env.observe().observation["shared"])})
        total, steps, over = total + step.reward["shared"], steps + 1, step.over
    assert step.terminated["shared"].all()
    assert not step.truncated["shared"].any()
    return total, steps


def always(*actions):
    return lambda t, observation: np.broadcast_to(actions, (len(observation), len(actions)))


@pytest.mark.parametrize(
    ("name", "options", "actions", "expected"),
    [
        ("climbing", {}, (0, 0), 275),
        ("climbing", {}, (1, 1), 175),
        ("climbing", {}, (2, 2), 125),
        ("climbing", {}, (0, 1), -750),
        ("climbing", {"repeats": 3}, (2, 1), 18),
        ("climbing", {"repeats": 1}, (1, 2), 0),
        ("penalty", {}, (0, 2), 250),
        ("penalty", {}, (2, 0), 250),
        ("penalty", {}, (1, 1), 50),
        ("penalty", {}, (0, 0), -2500),
        ("penalty", {"k": -25}, (2, 2), -625),
        ("penalty", {"k": 0}, (0, 0), 0),
    ],
)
def test_repeated_games_pay_their_known_returns_to_each_agent(name, options, actions, expected):
    env = make(f"matrix/{name}", copies=3, **options)
    total, steps = episode(env, always(*actions))
    assert total.tolist() == [[expected] * 2] * 3
    assert steps == options.get("repeats", 25)


def test_agents_of_a_repeated_game_see_nothing_but_a_constant():
    env = make("matrix/climbing", copies=2)
    env.reset([0, 1], [1, 2])
    for t in range(25):
        assert env.observe().observation["shared"].tolist() == [[[1.0], [1.0]]] * 2
        step = env.step({"shared": np.full((2, 2), t % 3)})
        assert step.over.all() == step.terminated["shared"].all() == (t == 24)


def test_game_of_three_players_pays_by_each_ones_action():
    payoff = np.arange(24).reshape(2, 3, 4)
    env = make("matrix/game", payoff=payoff.tolist(), repeats=1, groups="separate")
    assert [group.action_space.n for group in env.spec.groups] == [2, 3, 4]
    for actions in itertools.product(range(2), range(3), range(4)):
        env.reset([0], [0])
        step = env.step({f"agent_{i}": np.array([[action]]) for i, action in enumerate(actions)})
        assert [step.reward[f"agent_{i}"][0, 0] for i in range(3)] == [payoff[actions]] * 3


def test_game_may_pay_each_player_differently():
    env = make("matrix/game", payoff=[[[-1, -3], [0, -2]], [[-1, 0], [-3, -2]]], common=False, repeats=2)
    assert episode(env, always(1, 0))[0].tolist() == [[0, -6]]


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [(0, (0, 0), 7), (0, (1, 0), 7), (0, (1, 1), 7), (1, (0, 0), 0), (1, (0, 1), 1), (1, (1, 0), 1), (1, (1, 1), 8)],
)
@pytest.mark.parametrize("other", [0, 1])
def test_first_action_of_agent_0_chooses_the_second_game(first, second, expected, other):
    env = make("matrix/two_step", copies=2)
    env.reset([0, 1], [0, 1])
    assert env.state().tolist() == [[1, 0, 0]] * 2
    step = env.step({"shared": np.array([[first, other]] * 2)})
    place = [0.0, 1.0 - first, float(first)]
    assert env.state().tolist() == [place] * 2
    assert step.seen.observation["shared"].tolist() == [[place] * 2] * 2
    assert not step.reward["shared"].any()
    assert not step.over.any()
    step = env.step({"shared": np.array([second] * 2)})
    assert step.reward["shared"].tolist() == [[expected] * 2] * 2
    assert step.terminated["shared"].all()
    assert step.over.all()


def test_memory_task_pays_1_to_who_remembers_and_by_chance_to_who_does_not():
    env = make("matrix/memory", copies=2000, agents=3, cues=4)
    cues = {}

    def remember(t, observation):
        if t == 0:
            cues["seen"] = observation[..., :4].argmax(-1)
        return cues["seen"]

    total, steps = episode(env, remember)
    assert (total == 1).all()
    assert steps == 22
    assert np.bincount(cues["seen"].ravel(), minlength=4) / 6000 == pytest.approx(np.full(4, 0.25), abs=0.03)
    blind, _ = episode(env, always(2, 2, 2))
    assert blind.mean() == pytest.approx(0.25, abs=0.03)


def test_cues_of_agents_are_their_own_and_those_of_the_seed():
    env = make("matrix/memory", copies=40, cues=2)
    env.reset(list(range(40)), [7] * 20 + list(range(20)))
    cue = env.observe().observation["shared"].argmax(-1)
    assert len(np.unique(cue[:20], axis=0)) == 1
    assert len(np.unique(cue[20:], axis=0)) == 4  # all pairs: independent


def test_cue_is_seen_in_the_first_step_alone_and_the_question_in_the_last():
    env = make("matrix/memory", copies=2, cues=3, delay=5)
    env.reset([0, 1], [0, 1])
    seen = [env.observe().observation["shared"]]
    seen += [env.step({"shared": np.zeros((2, 2), int)}).seen.observation["shared"] for _ in range(6)]
    assert seen[0][..., :3].sum(-1).tolist() == [[1, 1]] * 2
    assert [part[..., :3].any() for part in seen] == [True] + [False] * 6
    assert [part[..., 3].tolist() for part in seen] == [[[0, 0]] * 2] * 6 + [[[1, 1]] * 2]


def test_naming_the_cue_before_the_question_pays_nothing():
    env = make("matrix/memory", copies=50, delay=2)
    cues = {}

    def too_early(t, observation):
        cues[t] = observation[..., :4].argmax(-1)
        return cues[0] if t < 3 else (cues[0] + 1) % 4

    assert not episode(env, too_early)[0].any()


def test_copies_that_are_over_stay_still_until_their_reset():
    env = make("matrix/climbing", copies=2, repeats=2)
    env.reset([0], [0])
    assert env.observe().active["shared"].tolist() == [[True] * 2, [False] * 2]
    act = {"shared": np.zeros((2, 2), int)}
    env.step(act)
    env.reset([1], [0])
    step = env.step(act)
    assert step.over.tolist() == [True, False]
    assert step.seen.active["shared"].tolist() == [[False] * 2, [True] * 2]
    step = env.step({"shared": np.array([[9, -1], [0, 0]])})  # whatever a copy that is over is told
    assert step.reward["shared"].tolist() == [[0, 0], [11, 11]]
    assert step.terminated["shared"].tolist() == [[False] * 2, [True] * 2]
    assert step.seen.observation["shared"].tolist() == [[[0], [0]], [[1], [1]]]
    assert step.over.all()


@pytest.mark.parametrize(
    "overrides",
    [["env=matrix/climbing"], ["env=matrix/penalty", "env.k=-25"], ["env=matrix/game", "env.payoff=[[3,0],[0,2]]"],
     ["env=matrix/two_step"], ["env=matrix/memory", "env.cues=2"]],
    ids=str,
)  # fmt: skip
def test_configuration_of_every_game_makes_it(overrides):
    options = compose(overrides).env
    env = make(copies=2, **options)
    assert env.spec.version.startswith("marl_hpc ")
    assert env.spec.version.endswith(f" {options['name']}")
    assert EnvSpec.from_json(env.spec.to_json()) == env.spec
    env.reset([0, 1], [0, 1])
    assert env.state().shape == (2, *env.spec.state_shape)
    env.close()


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("penalty", {"k": 100}, ["k=100", "k=-100"]),
        ("climbing", {"repeats": 0}, ["repeats=0"]),
        ("game", {"payoff": [[1, 2], [3]]}, ["payoff=[[1, 2], [3]]"]),
        ("game", {"payoff": [[1, 2], [3, float("nan")]]}, ["finite"]),
        ("game", {"payoff": [[1, 2], [3, 4]], "common": False}, ["one matrix for each of N players"]),
        ("game", {}, ["missing a required argument: 'payoff'"]),
        ("game", {"payoff": 3}, ["one axis for each player"]),
        ("memory", {"cues": 1}, ["cues=1", "at least 2"]),
        ("climbing", {"k": 3}, ["'k'", "it takes"]),
        ("climbing", {"copies": 0}, ["copies=0"]),
    ],
)
def test_games_that_can_not_be_are_refused(name, options, words):
    with pytest.raises(ConfigError) as caught:
        make(f"matrix/{name}", **options)
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize(
    ("actions", "words"), [([[0, 3]], "0 to 2, and got 3"), ([[-1, 0]], "got -1"), ([[0]], r"shape \(1, 1\); expected \(1, 2\)")]
)
def test_actions_that_do_not_exist_are_refused(actions, words):
    env = make("matrix/climbing")
    env.reset([0], [0])
    with pytest.raises(ValueError, match=words):
        env.step({"shared": np.array(actions)})
