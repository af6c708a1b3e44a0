"""Compiled games as environments, against the same games played by OpenSpiel itself."""

import numpy as np
import pytest
from safetensors.torch import load_file

from marl_hpc.cli import run
from marl_hpc.config import ConfigError
from marl_hpc.envs import make
from marl_hpc.keyed_random import EPISODE, integer
from marl_hpc.testing import env_contract

GAMES = {
    "kuhn_poker": {},
    "leduc_poker": {},
    "tiny_hanabi": {},
    "liars_dice": {"dice_sides": 3},
    "goofspiel": {"num_cards": 3, "points_order": "descending", "imp_info": True},
    "game": {"game": "kuhn_poker(players=3)"},
}


def same(one, other):
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        one, other = one.values(), other.values()
    if isinstance(one, np.ndarray):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    elif one is not None:
        for x, y in zip(one, other, strict=True):
            same(x, y)


def same_play(name, options, groups, steps, copies=4):
    ours, theirs = (make(f"{family}/{name}", copies=copies, groups=groups, **options) for family in ("openspiel_fast", "openspiel"))
    random = np.random.default_rng(0)
    assert ours.spec.to_json() | {"name": ""} == theirs.spec.to_json() | {"name": ""}
    same(ours.observe(), theirs.observe())
    over, episodes = np.ones(copies, bool), 0
    for _ in range(steps):
        # some wait for a step before they are reset
        start = np.flatnonzero(over & (random.random(copies) < 0.7)).tolist()
        seeds = random.integers(0, 2**31, len(start)).tolist()
        episodes += len(start)
        for env in (ours, theirs):
            env.reset(start, seeds)
        seen = theirs.observe()
        same(ours.observe(), seen)
        np.testing.assert_array_equal(ours.state(), theirs.state())
        actions = {group: (random.random(mask.shape) * mask).argmax(-1) for group, mask in seen.action_mask.items()}
        mine, step = ours.step(actions), theirs.step(actions)
        same(mine, step)
        over = step.over
    return episodes


@pytest.mark.parametrize("name", GAMES)
@pytest.mark.parametrize("groups", ["shared", "separate"])
def test_same_seeds_and_actions_give_the_same_steps_as_open_spiel(name, groups):
    assert same_play(name, GAMES[name], groups, 60) > 20


def test_players_may_see_the_observation_instead_of_the_information_state():
    assert same_play("leduc_poker", {"observation": "observation"}, {"player_0": "b", "player_1": "a"}, 40) > 10


def test_cards_are_dealt_alike_whatever_the_seeds():
    """Kuhn poker's six deals: seeds that follow one another, and those of episodes that are keyed by layout-independent numbers."""
    env = make("openspiel_fast/kuhn_poker", copies=60_000)
    drawn = [integer(7, EPISODE, copy, episode) for copy in range(300) for episode in range(200)]
    for seeds in (list(range(60_000)), list(range(2**31 - 60_000, 2**31)), drawn):
        env.reset(list(range(60_000)), seeds)
        _, counts = np.unique(env.observe().observation["shared"].reshape(60_000, -1), axis=0, return_counts=True)
        assert len(counts) == 6
        assert ((counts - 10_000) ** 2 / 10_000).sum() < 25.7  # chi-squared with 5 degrees of freedom: 1 in 10,000


def called_through(copies, seeds):
    """What is seen in an episode of each seed, in which everybody calls; chance moves twice."""
    env = make("openspiel_fast/leduc_poker", copies=5)
    env.reset(copies, seeds)
    seen, over, shown = env.observe(), False, {seed: [] for seed in seeds}
    while not over:
        for copy, seed in zip(copies, seeds, strict=True):
            shown[seed].append(seen.observation["shared"][copy].tolist())
        step = env.step({"shared": seen.action_mask["shared"][..., 1].astype(int)})
        seen, over = step.seen, step.over[copies].all()
    return shown


def test_an_episode_is_its_seeds_whatever_copies_are_reset_together():
    whole = called_through([0, 1, 2, 3, 4], [5, 6, 7, 8, 9])
    assert len({str(shown) for shown in whole.values()}) > 2
    for copies, seeds in (([4, 2], [6, 5]), ([3], [8]), ([0, 4], [9, 7])):
        for seed, shown in called_through(copies, seeds).items():
            assert shown == whole[seed]


def test_a_reset_makes_no_generator_for_each_copy(monkeypatch):
    env = make("openspiel_fast/leduc_poker", copies=1000)
    monkeypatch.setattr(np.random, "default_rng", lambda *_: pytest.fail("a reset takes microseconds that way"))
    env.reset(list(range(1000)), list(range(1000)))
    assert env.observe().active["shared"].any(1).all()


@pytest.mark.parametrize("name", ["kuhn_poker", "leduc_poker", "tiny_hanabi"])
def test_compiled_games_keep_the_contract(name):
    env_contract(lambda copies: make(f"openspiel_fast/{name}", copies=copies))


def test_a_game_is_compiled_once_for_each_thing_that_is_seen():
    first, second = (make("openspiel_fast/leduc_poker", copies=copies).game for copies in (1, 3))
    assert first is second
    assert make("openspiel_fast/leduc_poker", observation="observation").game is not first


def test_training_is_the_same_as_on_the_game_itself(tmp_path):
    values = []
    for family in ("openspiel", "openspiel_fast"):
        settings = ["world=inline", "rollout.envs=4", "rollout.fragment=10", "budget.env_steps=120", "evaluate.final_episodes=4"]
        assert run([f"env={family}/kuhn_poker", *settings, f"run.dir={tmp_path / family}"]).status == "finished"
        values.append([load_file(path)["values"] for path in sorted((tmp_path / family / "policies").glob("*.safetensors"))])
    assert len(values[0]) == len(values[1]) > 0
    assert all(bool((one == other).all()) for one, other in zip(*values, strict=True))


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("game", {"game": "backgammon"}, "names no information states.*; openspiel/game plays it as it is"),
        ("game", {"game": "khun_poker"}, "khun_poker"),
        ("kuhn_poker", {"copies": 0}, "copies=0"),
        ("kuhn_poker", {"observation": "nothing"}, "it gives: information_state, observation"),
        ("kuhn_poker", {"seats": 3}, "seats"),
    ],
)
def test_games_that_cannot_be_played_are_refused(name, options, says):
    with pytest.raises(ConfigError, match=says):
        make(f"openspiel_fast/{name}", **options)


def test_wrong_shapes_are_refused():
    env = make("openspiel_fast/kuhn_poker", copies=2)
    with pytest.raises(ValueError, match="2 copies got 1 seeds"):
        env.reset([0, 1], [0])
    env.reset([0, 1], [0, 1])
    with pytest.raises(ValueError, match=r"shape \(2,\); expected \(2, 2\)"):
        env.step({"shared": np.zeros(2, int)})
    with pytest.raises(ValueError, match="copy 0 got action 2"):
        env.step({"shared": np.full((2, 2), 2)})
