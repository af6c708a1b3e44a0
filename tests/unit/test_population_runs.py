"""Whole runs with populations, in this process."""

import json
from itertools import pairwise

import numpy as np
import pyspiel
import pytest
import torch
from rigs import inline
from safetensors.torch import load_file

from marl_hpc import paradigms
from marl_hpc.building import Builder, make_env
from marl_hpc.compose import compose
from marl_hpc.config import ConfigError
from marl_hpc.envs.openspiel_fast import whole_game
from marl_hpc.games import nash_conv, uniform_policy
from marl_hpc.meta_solvers import resolve
from marl_hpc.populations import PolicyId
from marl_hpc.roles import casting, exact, population
from marl_hpc.roles.casting import natural
from marl_hpc.roles.exact import ExactLearner
from marl_hpc.roles.learner import Learner
from marl_hpc.roles.rollout import RolloutWorker
from marl_hpc.storage.checkpoint import newest
from marl_hpc.storage.fragments import unpack

KUHN = ("env=openspiel_fast/kuhn_poker", "population.every_steps=80", "rollout.fragment=10", "budget.env_steps=240")
EXACT = ("env=openspiel_fast/kuhn_poker", "population=psro", "population.oracle=exact")


def numbers(lines, name):
    return [line[name] for line in lines if name in line]


def read(run_dir, name):
    return json.loads((run_dir / "population" / name).read_text())


def openspiels_nash_conv(run_dir):
    """Of the exported policy."""
    game = pyspiel.load_game("kuhn_poker")
    return pyspiel.nash_conv(game, pyspiel.TabularPolicy(read(run_dir, "policy.json")))


@pytest.fixture
def plain(monkeypatch):
    """Computed populations take no options of learning."""
    monkeypatch.setattr(inline, "SMALL", ())


@pytest.mark.usefixtures("plain")
def test_computed_best_responses_converge_on_kuhn_poker_and_openspiel_agrees(tmp_path):
    lines = inline.train(tmp_path, *EXACT)
    gaps = numbers(lines, "population/nash_conv")
    assert len(gaps) <= 12
    assert gaps[-1] <= 1e-6 < gaps[0]
    assert openspiels_nash_conv(tmp_path) == pytest.approx(gaps[-1], abs=1e-9)
    assert [
        line["iteration"] for line in map(json.loads, (tmp_path / "population" / "history.jsonl").read_text().splitlines())
    ] == list(range(len(gaps)))
    members = read(tmp_path, "members.json")["members"]
    assert sum(member["made_by"] == "exact best response" for member in members) == len(members) - 2


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("scheme", ["psro", "anytime_psro"])
def test_a_computed_run_goes_on_where_it_ended(tmp_path, scheme):
    options = (*EXACT[:1], f"population={scheme}", "population.oracle=exact")
    whole = inline.train(tmp_path / "whole", *options)
    assert inline.rank(tmp_path / "parts", *options, "population.iterations=3").run() == 0
    parts = inline.train(tmp_path / "parts", *options, resume=True)
    for name in ("population/nash_conv", "population/size/player_0"):
        assert numbers(parts, name) == numbers(whole, name)
    assert read(tmp_path / "parts", "payoffs.json") == read(tmp_path / "whole", "payoffs.json")


def stop(rank):
    rank.world.control = {"control/stop": "a test"}


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("scheme", ["psro", "anytime_psro"])
@pytest.mark.parametrize("iterations", [0, 2])
def test_a_computed_run_that_is_stopped_goes_on_also_where_it_hadnt_begun(tmp_path, monkeypatch, scheme, iterations):
    options = (*EXACT[:1], f"population={scheme}", "population.oracle=exact", "population.iterations=6")
    whole = inline.train(tmp_path / "whole", *options)
    early, step = inline.rank(tmp_path / "parts", *options), ExactLearner.step

    def stopping(self):
        if self.iteration == iterations:
            stop(early)
        return step(self)

    monkeypatch.setattr(ExactLearner, "step", stopping)
    assert early.run() == 75
    monkeypatch.undo()
    assert read(tmp_path / "parts", "payoffs.json").keys() == {"sizes", "payoffs"}
    monkeypatch.setattr(inline, "SMALL", ())
    parts = inline.train(tmp_path / "parts", *options, resume=True)
    for name in ("population/nash_conv", "population/size/player_0"):
        assert numbers(parts, name) == numbers(whole, name)
    assert read(tmp_path / "parts", "members.json") == read(tmp_path / "whole", "members.json")


def test_a_run_that_is_stopped_leaves_its_members_and_payoffs(tmp_path, monkeypatch):
    run = (*KUHN, "population=psro", "groups=separate", "population.payoffs=simulated", "population.half_width=0.5")
    inline.train(tmp_path / "whole", *run, "budget.env_steps=160")
    rank, step = inline.rank(tmp_path / "stopped", *run), Learner.step

    def stopping(self):
        if self.schedule.env_steps(self.iteration) == 160:
            stop(rank)
        return step(self)

    monkeypatch.setattr(Learner, "step", stopping)
    assert rank.run() == 75
    assert read(tmp_path / "stopped", "members.json") == read(tmp_path / "whole", "members.json")
    ours, theirs = (np.array(read(tmp_path / name, "payoffs.json")["payoffs"], float) for name in ("stopped", "whole"))
    assert ours.shape == theirs.shape == (2, 3, 3)
    np.testing.assert_array_equal(ours, theirs)
    assert not (tmp_path / "stopped" / "population" / "policy.json").exists()


@pytest.mark.parametrize("scheme", ["self_play", "fictitious_play", "delta_uniform", "league", "psro", "anytime_psro"])
@pytest.mark.parametrize("groups", ["shared", "separate"])
def test_every_scheme_freezes_a_policy_each_stage_and_openspiel_agrees_on_what_that_amounts_to(tmp_path, scheme, groups):
    lines = inline.train(tmp_path, *KUHN, f"population={scheme}", f"groups={groups}")
    assert numbers(lines, "population/size") == [1, 2, 3, 4]
    assert openspiels_nash_conv(tmp_path) == pytest.approx(numbers(lines, "population/nash_conv")[-1], abs=1e-6)
    members = read(tmp_path, "members.json")
    assert members["populations"] == ([0, 0] if groups == "shared" else [0, 1])
    for steps in ("env_steps", "run_steps"):
        assert [member[steps] for member in members["members"][:4]] == [0, 80, 160, 240]
    assert [member["parent"] for member in members["members"][:4]] == [None, 0, 1, 2]
    assert len({member["content"] for member in members["members"]}) == len(members["members"])


@pytest.mark.parametrize("groups", ["shared", "separate"])
def test_members_of_any_scheme_are_ranked_by_cross_play(tmp_path, groups):
    run = (*KUHN, "population=self_play", f"groups={groups}")
    inline.train(tmp_path / "ranked", *run, "population.cross_play=true")
    inline.train(tmp_path / "plain", *run)
    ranking, payoffs = read(tmp_path / "ranked", "ranking.json"), read(tmp_path / "ranked", "payoffs.json")
    assert payoffs["sizes"] == [4, 4]
    assert sum(ranking["alpha_rank"]["masses"]) == pytest.approx(1 if groups == "shared" else 2, abs=1e-4)
    assert ranking["alpha_rank"]["model"] == ("a single population" if groups == "shared" else "a population for each player")
    rates = np.array(ranking["win_rates"], float)
    met = ~np.isnan(rates)
    assert met.sum() == (12 if groups == "shared" else 32)
    assert (rates + rates.T)[met] == pytest.approx(1, abs=1e-5)
    assert len(ranking["elo"]["ratings"]) == len(ranking["names"]) == len(rates)
    assert not (tmp_path / "plain" / "population" / "ranking.json").exists()
    assert read(tmp_path / "ranked", "members.json") == read(tmp_path / "plain", "members.json")


@pytest.mark.usefixtures("plain")
def test_computed_populations_are_ranked_and_those_without_a_table_are_not(tmp_path):
    inline.train(tmp_path / "psro", *EXACT)
    sizes = read(tmp_path / "psro", "payoffs.json")["sizes"]
    assert len(read(tmp_path / "psro", "ranking.json")["elo"]["ratings"]) == sum(sizes)
    inline.train(tmp_path / "anytime", *EXACT[::2], "population=anytime_psro")
    assert not (tmp_path / "anytime" / "population" / "ranking.json").exists()


def test_three_players_answer_joint_distributions_and_a_checkpoint_keeps_them(tmp_path):
    run = (
        *KUHN, "env.players=3", "population=psro", "population.meta_solver=coarse_correlated_equilibrium", "groups=separate",
        "population.every_steps=120", "rollout.envs=3", "checkpoint.every_steps=120",
    )  # fmt: skip
    lines = inline.train(tmp_path / "whole", *run, "budget.env_steps=480")
    assert numbers(lines, "population/size") == [1, 2, 3, 4, 5]
    inline.rank(tmp_path / "parts", *run, "budget.env_steps=360").run()
    inline.train(tmp_path / "parts", *run, "budget.env_steps=480", resume=True)
    for name in ("members.json", "payoffs.json", "policy.json"):
        assert read(tmp_path / "parts", name) == read(tmp_path / "whole", name)
    assert np.array(read(tmp_path / "whole", "payoffs.json")["payoffs"]).shape == (3, 5, 5, 5)


def test_what_a_population_starts_with_is_played_like_that(tmp_path):
    game = pyspiel.load_game("kuhn_poker")
    for start, expected in (
        ("uniform", 0.916667),
        ("pure", pyspiel.nash_conv(game, pyspiel.FirstActionPolicy(game)) if hasattr(pyspiel, "FirstActionPolicy") else 2.0),
    ):
        lines = inline.train(tmp_path / start, *KUHN, "population=psro", f"population.start={start}")
        assert numbers(lines, "population/nash_conv")[0] == pytest.approx(expected, abs=1e-6)


def test_frozen_policies_pinned_values_never_change_and_survive_a_resume(tmp_path):
    run = ("population=psro", "groups=separate", "checkpoint.every_steps=80", "checkpoint.keep=9", *KUHN)
    inline.train(tmp_path / "whole", *run)
    early = inline.rank(tmp_path / "parts", *run, "budget.env_steps=160")
    assert early.run() == 0
    inline.train(tmp_path / "parts", *run, resume=True)
    for run_dir in (tmp_path / "whole", tmp_path / "parts"):
        pins = {}
        for folder in sorted((run_dir / "checkpoints").glob("step_*"), key=lambda path: natural(path.name)):
            for name, x in load_file(folder / "parameter-0.safetensors").items():
                if name.startswith("pins.values.population"):
                    assert torch.equal(pins.setdefault(name, x), x)
        assert len(pins) == 8
    found = newest(tmp_path / "parts")
    assert found is not None
    assert read(tmp_path / "parts", "members.json") == read(tmp_path / "whole", "members.json")
    assert read(tmp_path / "parts", "payoffs.json") == read(tmp_path / "whole", "payoffs.json")


def test_simulated_payoffs_come_close_to_computed_ones(tmp_path):
    run = (*KUHN, "population=psro", "groups=separate")
    inline.train(tmp_path / "exact", *run)
    inline.train(
        tmp_path / "simulated", *run, "population.payoffs=simulated", "population.min_episodes=1000", "population.max_episodes=2000"
    )
    exact, simulated = (np.array(read(tmp_path / name, "payoffs.json")["payoffs"]) for name in ("exact", "simulated"))
    known = min(exact.shape[1], 2)  # later ones answer other strategies
    assert np.abs(exact - simulated)[:, :known, :known].max() < 0.25
    assert np.abs(exact).max() > 0.05


@pytest.mark.parametrize("game", ["connect_four", "backgammon", "hanabi"])
@pytest.mark.parametrize("payoffs", ["auto", "simulated"])
def test_payoffs_of_games_that_cant_be_written_down_are_simulated(tmp_path, monkeypatch, capsys, game, payoffs):
    monkeypatch.setattr(population, "BATCH", 2)
    lines = inline.train(
        tmp_path, f"env=openspiel/{game}", "population=psro", f"population.payoffs={payoffs}", "population.meta_solver=uniform",
        "population.every_steps=40", "population.min_episodes=2", "population.max_episodes=2", "budget.env_steps=40",
    )  # fmt: skip
    assert numbers(lines, "population/size") == [1, 2]
    assert not numbers(lines, "population/nash_conv")
    assert np.isfinite(np.array(read(tmp_path, "payoffs.json")["payoffs"], float)).all()
    assert f"payoffs are simulated, and NashConv isn't known: env=openspiel/{game}: {game}" in capsys.readouterr().out
    assert not (tmp_path / "population" / "policy.json").exists()


def test_an_opponent_is_drawn_once_an_episode_and_nobody_learns_from_it(tmp_path, monkeypatch):
    seen, steps = [], []
    collect, act = RolloutWorker.collect, RolloutWorker.act

    def acting(self, *arguments):
        steps.append((self.first.copy(), self.casting.cast.copy()))
        return act(self, *arguments)

    def collecting(self, sequence):
        steps.clear()
        packed, ended = collect(self, sequence)
        seen.append((packed, list(steps)))
        return packed, ended

    monkeypatch.setattr(RolloutWorker, "act", acting)
    monkeypatch.setattr(RolloutWorker, "collect", collecting)
    run = (*KUHN, "population=psro", "population.meta_solver=uniform", "groups=separate", "rollout.envs=4")
    rank = inline.rank(tmp_path, *run)
    assert rank.run() == 0
    met, again = set(), 0
    for packed, steps in seen:
        for (_, before), (first, cast) in pairwise(steps):
            np.testing.assert_array_equal(cast[~first], before[~first])
            again += (cast[first] != before[first]).sum()
        for t, (_, cast) in enumerate(steps):
            assert ((cast == -1).sum(1) == 1).all()  # one learns in each copy
            assert (cast[:, 0] == -1).tolist() == [True, False, True, False]
            met |= set(cast.ravel().tolist())
            for plan in rank.builder.plans:
                name = plan.interface.name
                active = unpack(packed[name], plan.interface, "float32")[f"{name}/active"][t, :, 0]
                assert not active[cast[:, int(name[-1])] != -1].any()
        for plan in rank.builder.plans:
            name = plan.interface.name
            active = unpack(packed[name], plan.interface, "float32")[f"{name}/active"][..., 0]
            assert active[:, steps[0][1][:, int(name[-1])] == -1].any()
    assert met == {-1, 0, 1, 2}
    assert again > 10  # another episode, another opponent


def test_the_policies_that_were_used_last_stay_in_memory():
    loaded = []

    def values(name):
        loaded.append(name.number)
        return None, {}

    frozen = casting.FrozenPolicies(["a plan"], {0: 0}, lambda plan: {}, None, None, limit=2)  # type: ignore[arg-type]
    frozen.values = values  # type: ignore[method-assign]
    for number in (0, 1, 0, 2, 0, 1):
        assert frozen[PolicyId(0, number)] is frozen[PolicyId(0, number)]
        assert len(frozen.kept) <= 2
    assert loaded == [0, 1, 2, 1]
    assert list(frozen.kept) == [PolicyId(0, 0), PolicyId(0, 1)]


def test_how_many_policies_stay_in_memory_changes_nothing(tmp_path, monkeypatch):
    most, get = [0], casting.FrozenPolicies.__getitem__

    def noting(self, name):
        found = get(self, name)
        most.append(len(self.kept))
        return found

    monkeypatch.setattr(casting.FrozenPolicies, "__getitem__", noting)
    run = (*KUHN, "population=fictitious_play", "groups=separate", "rollout.envs=4")
    inline.train(tmp_path / "all", *run)
    assert max(most) > 2
    most.clear()
    inline.train(tmp_path / "two", *run, "population.cache=2")
    assert max(most) == 2
    assert read(tmp_path / "two", "members.json") == read(tmp_path / "all", "members.json")


@pytest.mark.parametrize("payoffs", ["simulated", "exact"])
def test_a_worker_says_between_two_steps_that_it_is_at_what_it_was_given(tmp_path, monkeypatch, payoffs):
    renewed, renew = [], population.PopulationShard.renew
    monkeypatch.setattr(population.PopulationShard, "renew", lambda self, owner: (renewed.append(owner), renew(self, owner)))
    run = (*KUHN, "population=psro", f"population.payoffs={payoffs}")
    inline.train(tmp_path / "quick", *run)
    assert not renewed
    monkeypatch.setattr(Builder, "lease_s", 1e-9)
    inline.train(tmp_path / "slow", *run)
    assert len(renewed) > 4
    assert set(renewed) == {"rollout/0"}
    assert read(tmp_path / "slow", "payoffs.json") == read(tmp_path / "quick", "payoffs.json")


@pytest.mark.parametrize("lag", [0, 1])
def test_payoffs_are_simulated_between_iterations_where_they_lag_and_before_them_otherwise(tmp_path, monkeypatch, lag):
    events, simulate, learn = [], casting.Casting.simulate, Learner.learn

    def simulating(self, lease):
        events.append(("simulate", max(lease.cell)))  # the stage that asks for the cell
        return simulate(self, lease)

    def learning(self, k, batches):
        events.append(("learn", self.schedule.stage(k)))
        return learn(self, k, batches)

    monkeypatch.setattr(casting.Casting, "simulate", simulating)
    monkeypatch.setattr(Learner, "learn", learning)
    inline.train(
        tmp_path, *KUHN, "population=psro", "groups=separate", "population.payoffs=simulated", "population.meta_solver=uniform",
        "population.min_episodes=50", "population.max_episodes=50", "rollout.envs=2", f"population.lag={lag}",
    )  # fmt: skip
    for stage in (1, 2):
        learned = [place for place, event in enumerate(events) if event == ("learn", stage)]
        simulated = [place for place, event in enumerate(events) if event == ("simulate", stage)]
        assert len(learned) == 4
        assert len(simulated) == 2 * stage + 1
        between = [place for place in simulated if learned[0] < place < learned[-1]]
        assert len(between) >= 2 if lag else not between
        if not lag:
            assert max(simulated) < min(learned)


LEVELS = ("population=pipeline_psro", "population.levels=2", "rollout.envs=4")
EXPLOITERS = (
    "population=league",
    "population.exploiters=[main,league]",
    "population.live=0.5",
    "rollout.envs=6",
    "population.every_steps=60",
)


@pytest.mark.parametrize("groups", ["shared", "separate"])
def test_levels_of_best_responses_learn_side_by_side(tmp_path, groups):
    lines = inline.train(tmp_path, *KUHN, *LEVELS, f"groups={groups}")
    assert numbers(lines, "population/size") == [1, 3, 5, 7]
    assert openspiels_nash_conv(tmp_path) == pytest.approx(numbers(lines, "population/nash_conv")[-1], abs=1e-6)
    members = [member for member in read(tmp_path, "members.json")["members"] if member["id"].startswith("0/")]
    assert [member["made_by"].removeprefix("best response, ") for member in members[1:]] == [
        "level 1", "level 2, still learning", "level 3, still learning", "level 2", "level 3", "level 4, still learning",
    ]  # fmt: skip
    assert [member["parent"] for member in members] == [None, 0, None, 1, 2, 3, 4]  # level 2 has a network of its own
    assert len({member["content"] for member in members}) == len(members)
    payoffs = np.array(read(tmp_path, "payoffs.json")["payoffs"][0], float)
    assert np.isnan(payoffs[3, 6])  # nobody needs to know what unfinished level 3 returns against what it became
    assert not np.isnan(payoffs[np.ix_([0, 1, 4, 5, 6], [0, 1, 4, 5, 6])]).any()


@pytest.mark.parametrize(
    ("options", "parents", "steps"),
    [
        (["population=psro", "population.fresh=true"], [None, 0, None, None], [0, 80, 80, 80]),
        (["population=psro", "population.fresh=true", "population.start=uniform"], [None, None, None, None], [0, 80, 80, 80]),
        (["population=anytime_psro", "population.updates=2", "population.fresh=true"], [None, 0, 1, None], [0, 80, 160, 80]),
    ],
)
def test_a_lineage_says_what_training_started_from_and_took_also_after_a_resume(tmp_path, options, parents, steps):
    run = (*KUHN, *options, "checkpoint.every_steps=80")
    inline.rank(tmp_path, *run, "budget.env_steps=160").run()
    inline.train(tmp_path, *run, resume=True)
    members = read(tmp_path, "members.json")["members"][:4]
    assert [member["parent"] for member in members] == parents
    assert [member["env_steps"] for member in members] == steps
    assert [member["run_steps"] for member in members] == [0, 80, 160, 240]


def test_exploiters_learn_beside_the_main_agents(tmp_path):
    lines = inline.train(tmp_path, *KUHN, *EXPLOITERS, "budget.env_steps=180")
    assert numbers(lines, "population/size") == [1, 4, 7, 10]
    members = read(tmp_path, "members.json")["members"]
    assert [member["made_by"] for member in members[4:7]] == ["main agent", "main exploiter", "league exploiter"]
    assert [member["parent"] for member in members[:6]] == [None, 0, None, None, 1, None]  # main exploiters begin anew
    assert [member["env_steps"] for member in members[3:6]] == [60, 120, 60]
    assert [member["run_steps"] for member in members[3:6]] == [60, 120, 120]
    assert openspiels_nash_conv(tmp_path) == pytest.approx(numbers(lines, "population/nash_conv")[-1], abs=1e-6)
    assert sorted(path.stem for path in (tmp_path / "policies").iterdir()) == ["shared"]


@pytest.mark.parametrize(
    ("solver", "env"), [("correlated_equilibrium", "tiny_hanabi"), ("rectified_nash", "kuhn_poker"), ("nash", "kuhn_poker")]
)
@pytest.mark.parametrize("groups", ["shared", "separate"])
def test_several_best_responses_join_each_stage_and_what_the_solver_says_of_all_is_met(tmp_path, solver, env, groups):
    run = (f"env=openspiel_fast/{env}", f"population.meta_solver={solver}", "population.responses=2", "rollout.envs=4")
    lines = inline.train(tmp_path, *KUHN, "population=psro", *run, f"groups={groups}")
    assert numbers(lines, "population/size") == [1, 3, 5, 7]
    members = [member for member in read(tmp_path, "members.json")["members"] if member["id"].startswith("0/")]
    assert [member["made_by"] for member in members[1:]] == ["best response, target 1", "best response, target 2"] * 3
    assert [member["parent"] for member in members] == [None, 0, None, 1, 2, 3, 4]
    assert len({member["content"] for member in members}) == len(members)
    payoffs = np.array(read(tmp_path, "payoffs.json")["payoffs"])
    history = (tmp_path / "population" / "history.jsonl").read_text().splitlines()
    for line, size in zip(map(json.loads, history), (1, 3, 5, 7), strict=True):
        for own, mixture in zip(line["mixtures"], resolve(solver)(payoffs[:, :size, :size]).mixtures, strict=True):
            np.testing.assert_allclose(own, mixture, atol=1e-6)


RESPONSES = ("population=psro", "population.meta_solver=rectified_nash", "population.responses=2", "rollout.envs=4")


@pytest.mark.parametrize("scheme", [LEVELS, EXPLOITERS, RESPONSES])
def test_each_line_learns_from_its_own_episodes_and_from_what_was_played_there(tmp_path, monkeypatch, scheme):
    seen, steps = [], []
    collect, replace = RolloutWorker.collect, casting.Casting.replace

    def collecting(self, sequence):
        steps.clear()
        packed, ended = collect(self, sequence)
        seen.append((packed, list(steps)))
        return packed, ended

    def replacing(self, questions, answers):
        replace(self, questions, answers)
        played = {group: x.clone() for answer in list(answers.values())[:2] for group, x in answer.actions.items()}
        steps.append((self.cast.copy(), self.trains.copy(), played))

    monkeypatch.setattr(RolloutWorker, "collect", collecting)
    monkeypatch.setattr(casting.Casting, "replace", replacing)
    rank = inline.rank(tmp_path, *KUHN, *scheme, "groups=separate", "population.every_steps=240")
    assert rank.run() == 0
    lines = 1 + max(plan.interface.line for plan in rank.builder.plans)
    learned = np.zeros(lines)
    for packed, steps in seen:
        for plan in rank.builder.plans:
            (group,) = plan.interface.groups
            fields = unpack(packed[plan.interface.name], plan.interface, "float32")
            player, line = int(group.name[-1]), plan.interface.line
            for t, (cast, trains, played) in enumerate(steps):
                number = np.arange(len(cast))
                mine = (number // 2 % lines == line) & (number % 2 == player) & (cast[:, player] == -1 - line)
                live = (line == 0) & (cast == -1).all(1) & trains.all(1)
                active = fields[f"{group.name}/active"][t, :, 0].numpy()
                assert not (active & ~(mine | live)).any()
                assert (fields[f"{group.name}/action"][t, :, 0] == played[group.name][:, 0]).numpy()[active].all()
                learned[line] += active.sum()
    assert (learned > 0).all()


def test_simulating_ahead_gives_each_stage_the_strategy_of_the_one_before(tmp_path):
    run = (
        *KUHN,
        "population=psro",
        "groups=separate",
        "population.payoffs=simulated",
        "population.meta_solver=uniform",
        "population.greedy=false",
        "population.min_episodes=50",
        "population.max_episodes=50",
        "rollout.envs=4",
        "checkpoint.every_steps=80",
    )
    lines = inline.train(tmp_path / "whole", *run, "population.lag=1")
    assert numbers(lines, "population/size") == [1, 2, 3, 4]
    early = inline.rank(tmp_path / "parts", *run, "population.lag=1", "budget.env_steps=160")
    assert early.run() == 0
    inline.train(tmp_path / "parts", *run, "population.lag=1", resume=True)
    for name in ("members.json", "payoffs.json", "policy.json"):
        assert read(tmp_path / "parts", name) == read(tmp_path / "whole", name)
    inline.train(tmp_path / "strict", *run)
    first, second = (
        [m["content"] for m in read(tmp_path / name, "members.json")["members"] if m["id"] in ("0/0", "0/1", "1/1")]
        for name in ("whole", "strict")
    )
    assert first == second  # until there is something to be met later
    last = [[m["content"] for m in read(tmp_path / name, "members.json")["members"]][-1] for name in ("whole", "strict")]
    assert last[0] != last[1]


CHICKEN = ("env=matrix/game", "env.payoff=[[[0,7],[2,6]],[[0,2],[7,6]]]", "env.common=false", "env.repeats=1")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["population=psro", "rollout.envs=3"], "multiple of 2"),
        (["population=psro", "env=mpe_fast/simple_spread", "paradigm=ctde"], "one player"),
        (["population=psro", "population.payoffs=exact", "algorithm.gru=4"], "algorithm.gru=0"),
        (
            ["population=psro", "population.payoffs=exact", "env=openspiel/connect_four"],
            "1000000 histories.* set payoffs=simulated",
        ),
        (["population=psro", "population.payoffs=exact", "env=openspiel/hanabi"], "no information states.* set payoffs=simulated"),
        (["population=psro", "population.meta_solver=nosh"], "unknown meta-solver"),
        (["population=psro", "population.start=pure", "env=mpe/simple_tag", "env.continuous_actions=true"], "start=network"),
        (["population=psro", "sync=asp"], "leave sync out"),
        (["population.delta=0.1"], "population=none"),
        (["population=psro", "population.live=0.1"], "population=delta_uniform or league"),
        (["population=psro", "population.tolerance=0.1"], "population.oracle=exact"),
        (["population=nfsp", "population.oracle=exact"], "takes: learned"),
        (["population=psro", "population.oracle=exact"], "algorithm is about learning"),
        (["population=pipeline_psro", "rollout.envs=6"], "multiple of 4, 2 players x 2 policies"),
        (["population=league", "population.exploiters=[mane]"], "known: main, league"),
        (["population=psro", "population.levels=3"], "population=pipeline_psro"),
        (["population=psro", "population.lag=2"], "0 or 1"),
        (["population=anytime_psro", "env.players=3", "rollout.envs=3"], "3 players"),
        (["population=anytime_psro", "env=openspiel_fast/tiny_hanabi"], "returns don't sum to a constant; choose population=psro"),
        (["population=anytime_psro", *CHICKEN], "returns don't sum to a constant; choose population=psro"),
        (
            ["population=psro", "env.players=3", "rollout.envs=3"],
            r"meta_solver=nash with .*doesn't solve games of 3 players; choose one of: alpha_rank, co",
        ),
        (
            ["population=psro", *CHICKEN],
            r"nash .*doesn't solve general-sum games of 2 players; choose one of: alpha_rank, coarse_correlated_equilibrium, fic",
        ),
        (["population=psro", "env=openspiel/tiny_hanabi"], "doesn't solve general-sum games"),
        (
            ["population=psro", *CHICKEN, "population.responses=2", "rollout.envs=4"],
            "choose one of: alpha_rank, coarse_correlated_equilibrium, correlated_equilibrium",
        ),
        (
            ["population=psro", "population.meta_solver=correlated_equilibrium"],
            r"set population\.responses .*or choose one of: alpha_rank, coa",
        ),
        (["population=psro", "population.meta_solver=rectified_nash"], r"set population\.responses .*nash, projected"),
        (
            ["population=pipeline_psro", "population.meta_solver=rectified_nash", "rollout.envs=4"],
            "each level of population=pipeline_psro is one",
        ),
        (
            ["population=psro", "population.meta_solver=alpha_rank", "population.meta_options={alpha: -1}"],
            r"meta_options=\{'alpha': -1\}: alpha_rank got alpha=-1",
        ),
        (
            [
                "population=psro",
                "population.meta_solver=alpha_rank",
                "population.meta_options={symmetric: true}",
                "groups=separate",
            ],
            "a population each",
        ),
        (
            ["population=psro", "population.meta_solver=alpha_rank", "population.meta_options={alpha: much}"],
            "meta_options={'alpha': 'much'}: ",
        ),
        (["population=psro", "population.responses=3"], "multiple of 6, 2 players x 3 policies"),
        (["population=pipeline_psro", "population.responses=3"], "population=psro"),
        (["population=psro", "population.cross_play=true"], "population=self_play or fictitious_play"),
        (["population.cross_play=true"], "needs a population"),
        (["population=self_play", "population.oracle=exact", "population.cross_play=true"], "population.oracle=learned; got exact"),
        (["population=nfsp", "population.half_width=0.1"], "set population.cross_play=true"),
        (
            [
                "population=self_play",
                "population.cross_play=true",
                "population.max_episodes=100",
                "env=mpe_fast/simple_spread",
                "env.N=5",
            ],
            "120 ways",
        ),
        (
            ["population=league", "env=mpe_fast/simple_spread", "env.N=7", "rollout.envs=7"],
            "5,040 ways .* raise it, or set groups=separate$",
        ),
        (
            ["population=psro", "population.half_width=0.1"],
            "half_width=0.1: .* computed: leave it out, or set population.payoffs=simulated",
        ),
        (
            ["population=psro", "population.min_episodes=10", "population.max_episodes=20"],
            "min_episodes=10, population.max_episodes=20: ",
        ),
    ],
)
def test_what_cant_be_is_refused_before_anything_starts(overrides, said):
    def prepare():
        config = compose([*inline.SMALL, "env=openspiel_fast/kuhn_poker", *overrides])
        env = make_env(config, 1)
        casting.check(config, paradigms.plan(config, env.spec), env)

    with pytest.raises(ConfigError, match=said):
        prepare()


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["env=matrix/game", "env.payoff=[[[1,-1],[-1,1]],[[-1,1],[1,-1]]]", "env.common=false"],
        ["env=classic/tictactoe"],
        ["env=openspiel/tic_tac_toe"],
        ["population.meta_solver=alpha_rank", "population.meta_options={symmetric: true}"],
        ["population.meta_solver=correlated_equilibrium", "population.responses=2", "rollout.envs=4", *CHICKEN],
        ["population.meta_solver=coarse_correlated_equilibrium", "env.players=3", "rollout.envs=3"],
    ],
)
def test_what_can_be_is_not(overrides):
    config = compose([*inline.SMALL, "env=openspiel_fast/kuhn_poker", "population=psro", *overrides])
    env = make_env(config, 1)
    casting.check(config, paradigms.plan(config, env.spec), env)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["env=openspiel_fast/tiny_hanabi"],
            "doesn't solve general-sum games of 2 players; choose one of: alpha_rank, .* correlated_equilibrium",
        ),
        (["env.players=3"], "doesn't solve games of 3 players"),
        (["population.meta_solver=alpha_rank", "population.meta_options={alpha: -1}"], "alpha=-1"),
        (["population.meta_solver=rectified_nash", "env=openspiel_fast/tiny_hanabi"], "rectified_nash .*general-sum"),
    ],
)
def test_computed_best_responses_to_what_a_solver_cant_say_are_refused(overrides, said):
    config = compose([*EXACT, *overrides])
    with pytest.raises(ConfigError, match=said):
        exact.check(config, whole_game(make_env(config, 1)))


def test_computed_best_responses_answer_several_targets():
    for solver, env in (("correlated_equilibrium", "tiny_hanabi"), ("rectified_nash", "kuhn_poker")):
        config = compose([*EXACT, f"env=openspiel_fast/{env}", f"population.meta_solver={solver}"])
        exact.check(config, whole_game(make_env(config, 1)))


@pytest.mark.parametrize(
    "option",
    [
        "groups=separate", "rollout.envs=4", "rollout.fragment=20", "rollout.max_lag=0", "rollout.transfer=delta", "dataset.queue_bytes=1000",
        "budget.env_steps=100", "evaluate.every_steps=10", "evaluate.final_episodes=5", "evaluate.greedy=true", "checkpoint.every_steps=10",
        "dtype=float64", "team_reward=sum",
    ],
)  # fmt: skip
def test_options_of_learning_are_refused_where_best_responses_are_computed(option):
    key = option.partition("=")[0]
    with pytest.raises(ConfigError, match=f"^{key}=.* is about learning, and population.oracle=exact computes best responses"):
        compose([*EXACT, option])


@pytest.mark.parametrize("experiment", ["kuhn_psro_exact", "leduc_psro_exact"])
def test_experiments_that_compute_are_taken(experiment):
    config = compose([f"experiment={experiment}", "budget.seconds=5", "checkpoint.keep=1", "roles.rollout=1"])
    assert config.population.oracle == "exact"


def test_a_uniform_table_is_openspiels_uniform_policy():
    env = make_env(compose(["env=openspiel/leduc_poker"]), 1)
    game = whole_game(env)
    assert game is not None
    assert nash_conv(game, [uniform_policy(game, 0), uniform_policy(game, 1)]) == pytest.approx(4.747222, abs=1e-6)
