"""Turn-based environments in batches against PettingZoo's own loop over `agent_iter` and `last`."""

import importlib
import warnings

import numpy as np
import pytest
from mpe2 import simple_spread_v3
from pettingzoo.utils import parallel_to_aec
from rigs.games import Relay

from marl_hpc.envs import ENVS, make
from marl_hpc.envs.turns import TurnBatch
from marl_hpc.testing import env_contract

GAMES = {
    "tictactoe": lambda: importlib.import_module("pettingzoo.classic.tictactoe_v3").env(),
    "connect_four": lambda: importlib.import_module("pettingzoo.classic.connect_four_v3").env(),
    "leduc_holdem": lambda: importlib.import_module("pettingzoo.classic.leduc_holdem_v4").env(),
    "texas_holdem": lambda: importlib.import_module("pettingzoo.classic.texas_holdem_v4").env(num_players=3),
    "rps": lambda: importlib.import_module("pettingzoo.classic.rps_v2").env(),
    "knights_archers_zombies": lambda: importlib.import_module("pettingzoo.butterfly.knights_archers_zombies_v11").env(
        max_cycles=150
    ),
    "spread_in_turns": lambda: parallel_to_aec(simple_spread_v3.parallel_env(max_cycles=6)),
}


def legal(observation, info):
    return observation["action_mask"] if isinstance(observation, dict) else info.get("action_mask")


def by_last(env, seed):
    """What PettingZoo's own protocol gives: each agent's rewards, how its episode ended, and the moves."""
    env.reset(seed=seed)
    random = np.random.default_rng(seed)
    returns, ends, moves = dict.fromkeys(env.possible_agents, 0.0), {}, []
    for agent in env.agent_iter():
        observation, reward, terminated, truncated, info = env.last()
        returns[agent] += reward
        if terminated or truncated:
            ends[agent] = "terminated" if terminated else "truncated"
            env.step(None)
            continue
        mask = legal(observation, info)
        action = int(random.choice(env.action_space(agent).n if mask is None else np.flatnonzero(mask)))
        moves.append((agent, action))
        env.step(action)
    return returns, ends, moves


def play(batch, copy, moves):
    """The same moves in one copy of a batch: rewards and ends of each step."""
    places = {agent: (group.name, i) for group in batch.spec.groups for i, agent in enumerate(group.agents)}
    steps = []
    for agent, action in moves:
        active = batch.observe().active
        assert [name for name, (group, i) in places.items() if active[group][copy, i]] == [agent]
        actions = {group.name: np.zeros((batch.copies, len(group.agents)), int) for group in batch.spec.groups}
        actions[places[agent][0]][copy, places[agent][1]] = action
        steps.append(batch.step(actions))
    return places, steps


@pytest.mark.parametrize("game", GAMES)
def test_rewards_and_ends_are_those_of_pettingzoos_own_protocol(game):
    plain, batch = GAMES[game](), TurnBatch(game, [GAMES[game]()])
    assert batch.spec.turn_based
    for seed in range(3):
        returns, ends, moves = by_last(plain, seed)
        batch.reset([0], [seed])
        places, steps = play(batch, 0, moves)
        for agent, (group, i) in places.items():
            assert sum(step.reward[group][0, i] for step in steps) == pytest.approx(returns[agent], abs=1e-9)
            for end in ("terminated", "truncated"):
                assert sum(getattr(step, end)[group][0, i] for step in steps) == (ends[agent] == end)
        assert [bool(step.over[0]) for step in steps] == [False] * (len(steps) - 1) + [True]


def test_loser_of_tictactoe_gets_its_reward_in_the_step_of_the_winners_move():
    batch = make("classic/tictactoe", copies=2)
    batch.reset([0, 1], [0, 1])
    for t, cell in enumerate([0, 1, 3, 4, 6]):  # the first player takes a column
        step = batch.step({"shared": np.array([[cell, cell]] * 2)})
        win = t == 4
        assert step.reward["shared"].tolist() == [[1.0, -1.0] if win else [0.0, 0.0]] * 2
        assert step.terminated["shared"].tolist() == [[win, win]] * 2
        assert not step.truncated["shared"].any()
        assert step.over.tolist() == [win, win]
        assert step.seen.active["shared"].tolist() == [[False, False] if win else [t % 2 == 1, t % 2 == 0]] * 2
        own, others = np.moveaxis(step.seen.observation["shared"][0], -1, 1)  # both see the board, their own pieces first
        assert np.array_equal(own, others[::-1])
        assert own.sum() == t + 1


def test_mask_is_the_movers_and_all_true_for_who_waits():
    batch = make("classic/tictactoe", copies=1)
    batch.reset([0], [0])
    step = batch.step({"shared": np.array([[4, 0]])})
    assert step.seen.action_mask["shared"][0, 1].tolist() == [i != 4 for i in range(9)]
    assert step.seen.action_mask["shared"][0, 0].all()


def test_copy_that_is_over_waits_while_the_others_go_on():
    batch = make("classic/tictactoe", copies=2)
    batch.reset([0, 1], [0, 1])
    for left, right in zip([0, 1, 3, 4, 6], [0, 1, 2, 3, 4], strict=True):
        step = batch.step({"shared": np.array([[left] * 2, [right] * 2])})
    assert step.over.tolist() == [True, False]
    step = batch.step({"shared": np.array([[0, 0], [5, 5]])})
    assert step.over.tolist() == [True, False]
    assert not step.reward["shared"][0].any()
    assert not step.terminated["shared"][0].any()
    assert not step.seen.observation["shared"][0].any()
    assert step.seen.active["shared"].tolist() == [[False, False], [True, False]]


def relay(moves, copies=1):
    batch = TurnBatch("relay", [Relay() for _ in range(copies)])
    batch.reset(list(range(copies)), [0] * copies)
    seen = [batch.observe()]
    steps = []
    for action in moves:
        steps.append(batch.step({"shared": np.full((copies, 4), action)}))
        seen.append(steps[-1].seen)
    return seen, steps


def test_turns_follow_the_selection_in_any_order():
    seen, _ = relay([1, 0, 2, 3, 0, 4, 2])
    assert [one.active["shared"][0].tolist().index(True) for one in seen] == [1, 1, 0, 2, 3, 0, 0, 2]
    assert all(one.active["shared"].sum() == 1 for one in seen)


def test_agent_dies_by_anothers_move_once_and_its_place_is_empty_afterwards():
    seen, steps = relay([4, 0, 0, 3, 3, 3, 3, 3])  # b eliminates c at once
    assert [step.terminated["shared"][0].tolist() for step in steps] == [[False, False, True, False]] + [[False] * 4] * 7
    assert steps[0].reward["shared"][0].tolist() == [0.5, 1.0, -5.0, 0.0]
    assert steps[1].reward["shared"][0].tolist() == [0.5, 0.5, 0.0, 0.0]
    assert seen[1].observation["shared"][0, 2].tolist() == [1, 3]  # its final one
    assert [one.observation["shared"][0, 2].tolist() for one in seen[2:]] == [[0, 0]] * 7
    assert all(one.action_mask["shared"][0, 2].all() for one in seen)
    assert [bool(step.over[0]) for step in steps] == [False] * 7 + [True]


def test_late_agent_has_an_empty_place_until_it_is_born():
    seen, steps = relay([1, 1, 1, 3, 3])
    assert [one.observation["shared"][0, 3].tolist() for one in seen] == [[0, 0]] * 3 + [[3, 4], [4, 4], [5, 4]]
    assert [one.active["shared"][0, 3] for one in seen] == [False] * 4 + [True, True]
    assert [step.reward["shared"][0, 3] for step in steps] == [0, 0, 0, 0.5, 0.5]
    assert seen[4].action_mask["shared"][0, 3].all()


def test_truncation_ends_all_who_live_and_keeps_their_final_observations():
    seen, steps = relay([4, 1, 1, 1, 1, 1, 1, 1])
    assert steps[-1].truncated["shared"][0].tolist() == [True, True, False, True]
    assert not any(step.truncated["shared"].any() for step in steps[:-1])
    assert seen[-1].observation["shared"][0].tolist() == [[8, 1], [8, 2], [0, 0], [8, 4]]
    assert not seen[-1].active["shared"].any()
    assert steps[-1].over.all()


def test_masks_in_infos_are_heard_and_forbid_the_dead():
    seen, _ = relay([4, 0])
    assert seen[0].action_mask["shared"][0, 1].tolist() == [True, True, True, False, True]
    assert seen[1].action_mask["shared"][0, 1].tolist() == [True, True, False, False, True]
    assert seen[1].action_mask["shared"][0, [0, 2, 3]].all()


def test_reset_brings_the_dead_back():
    batch = TurnBatch("relay", [Relay(), Relay()])
    batch.reset([0, 1], [0, 0])
    first = batch.observe()
    for action in [4, 0, 0]:
        batch.step({"shared": np.full((2, 4), action)})
    before = batch.observe()
    batch.reset([1], [0])
    after = batch.observe()
    for part in range(3):
        assert np.array_equal(after[part]["shared"][1], first[part]["shared"][1])
        assert np.array_equal(after[part]["shared"][0], before[part]["shared"][0])


def test_relay_keeps_the_contract():
    env_contract(lambda copies: TurnBatch("relay", [Relay() for _ in range(copies)]), 100)


class Lingering(Relay):
    """The dead stay until the baton comes round to them: nobody is stepped with None before."""

    def _deads_step_first(self):
        return self.agent_selection

    def mask(self):
        super().mask()
        self.infos[self.agent_selection]["action_mask"][:4] = [agent in self.agents for agent in self.possible_agents]


def test_dead_agent_that_the_environment_keeps_for_a_while_ends_once():
    batch = TurnBatch("lingering", [Lingering()])
    batch.reset([0], [0])
    steps = [batch.step({"shared": np.full((1, 4), action)}) for action in [4, 1, 1]]
    assert [step.terminated["shared"][0, 2] for step in steps] == [True, False, False]
    assert "c" in batch.envs[0].agents
    assert not steps[1].seen.observation["shared"][0, 2].any()
    assert not steps[1].seen.active["shared"][0, 2]


class Sticky(Relay):
    """`rewards` still tells the last move's when a dead agent was removed, and accumulates them only once: last() is right."""

    def _clear_rewards(self):
        pass


class Silent(Relay):
    """`rewards` is always empty; only the account that last() reads knows."""

    def step(self, action):
        super().step(action)
        self.rewards = dict.fromkeys(self.agents, 0.0)


@pytest.mark.parametrize("kind", [Relay, Sticky, Silent])
def test_what_rewards_says_wrong_is_put_right_by_the_account_of_last(kind):
    plain, batch = kind(), TurnBatch("relay", [kind()])
    for seed in range(5):
        returns, _, moves = by_last(plain, seed)
        batch.reset([0], [seed])
        places, steps = play(batch, 0, moves)
        got = {agent: sum(step.reward[group][0, i] for step in steps) for agent, (group, i) in places.items()}
        assert got == pytest.approx(returns)


class Shy(Relay):
    def observe(self, agent):
        if agent != self.agent_selection and not (self.terminations.get(agent) or self.truncations.get(agent)):
            raise ValueError("not your turn")
        return super().observe(agent)


def test_who_can_not_be_observed_while_waiting_sees_zeros_and_it_is_said_once():
    batch = TurnBatch("shy", [Shy()])
    with pytest.warns(UserWarning, match=r"shy can't be observed by a out of its turn.*not your turn") as said:
        batch.reset([0], [0])
    assert len(said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batch.step({"shared": np.full((1, 4), 0)})
    assert batch.observe().observation["shared"][0].tolist() == [[1, 1], [0, 0], [0, 0], [0, 0]]


class Blind(Relay):
    def observe(self, agent):
        raise ValueError("no eyes")


def test_error_of_observing_who_acts_is_not_swallowed():
    batch = TurnBatch("blind", [Blind()])
    with pytest.raises(ValueError, match="no eyes"), pytest.warns(UserWarning, match="no eyes"):
        batch.reset([0], [0])


class Undead(Relay):
    def _was_dead_step(self, action):
        pass


def test_dead_who_are_not_removed_are_an_error():
    batch = TurnBatch("undead", [Undead()])
    batch.reset([0], [0])
    with pytest.raises(RuntimeError, match="undead: c is dead and still there after 8 steps with None"):
        batch.step({"shared": np.full((1, 4), 4)})


class Vanishing(Relay):
    def step(self, action):
        super().step(action)
        if self.moves == 2 and "c" in self.agents:
            self.agents.remove("c")


def test_agent_that_vanishes_without_a_flag_is_cut_off():
    batch = TurnBatch("vanishing", [Vanishing()])
    batch.reset([0], [0])
    steps = [batch.step({"shared": np.full((1, 4), 1)}) for _ in range(3)]
    assert [step.truncated["shared"][0, 2] for step in steps] == [False, True, False]
    assert steps[1].seen.observation["shared"][0, 2].tolist() == [2, 3]
    assert not steps[2].seen.observation["shared"][0, 2].any()


def test_turn_based_and_parallel_environments_are_told_apart(monkeypatch):
    monkeypatch.setitem(ENVS, "test/turns", Relay)
    monkeypatch.setitem(ENVS, "test/parallel", simple_spread_v3.parallel_env)
    assert make("test/turns").spec.turn_based
    assert not make("test/parallel").spec.turn_based
    monkeypatch.setitem(ENVS, "test/wrapped", simple_spread_v3.env)
    spec = make("test/wrapped").spec
    assert (spec.turn_based, spec.state_from, spec.state_shape) == (True, "environment", (54,))
