"""Members of populations as their users load them."""

import json

import numpy as np
import pytest
import torch
from rigs import inline

import marl_hpc
from marl_hpc.actors import build_policy
from marl_hpc.building import make_env
from marl_hpc.compose import compose
from marl_hpc.envs.openspiel_fast import whole_game
from marl_hpc.games import to_openspiel
from marl_hpc.games.policies import mixture_policy
from marl_hpc.networks import FlatParameters
from marl_hpc.policies import load_mixture, load_policy
from marl_hpc.populations import Member, PolicyId
from marl_hpc.roles import growth
from marl_hpc.roles.population_folder import MemberPolicy, PopulationFolder
from marl_hpc.types import ActionSpace, GroupSpec

NETWORK = {"hidden": [16], "activation": "tanh", "agent_id": False}
KUHN = ("env=openspiel_fast/kuhn_poker", "population.every_steps=80", "rollout.fragment=10", "budget.env_steps=240")
SEEN = np.ones(3, np.float32)
PLAYERS = (
    {"agents": ["a", "b"], "population": 0, "mixture": [0.25, 0.0, 0.75]},
    {"agents": ["c"], "population": 1, "mixture": [0.5, 0.5, 0.0]},
)


def frozen(run_dir, kept=((0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)), played="drawn", zeros=False, players=PLAYERS):
    """A run's folder with members whose choices are far from even."""
    run_dir.mkdir(exist_ok=True)
    policies = []
    for population, number in kept:
        agents = ("a", "b") if population == 0 else ("c",)
        group = GroupSpec(
            name=f"side{population}", agents=agents, observation_shape=(3,), action_space=ActionSpace(kind="discrete", n=4)
        )
        values = FlatParameters([build_policy([group], NETWORK)], device="cpu", dtype=torch.float32).values.detach()
        values = torch.randn(len(values), generator=torch.Generator().manual_seed(number)) * (0 if zeros else 0.5)
        member = Member(PolicyId(population, number), None, number, 0, 0, "learned", played, "")
        policies.append(MemberPolicy(member, f"side{population}", [group], values, NETWORK))
    names = [f"{population}/{number}" for population, number in kept]
    PopulationFolder(run_dir, 0).keep(policies, {"kept": "some", "members": names, "players": list(players)})
    return run_dir


def shares(policy, **how):
    """How often each action is taken."""
    return np.bincount(policy.act(np.tile(SEEN, (8000, 1)), **how), minlength=4) / 8000


def test_a_member_acts_as_it_was_frozen_unless_told_otherwise(tmp_path):
    drawn = load_policy(frozen(tmp_path / "drawn"), "a", member=2, seed=0)
    greedy = load_policy(frozen(tmp_path / "greedy", played="greedy"), "a", member=2, seed=0)
    likely = shares(drawn, greedy=True)
    assert likely.max() == 1
    assert shares(greedy).tolist() == likely.tolist()
    assert 0.3 < shares(drawn).max() < 0.99
    assert shares(greedy, greedy=False) == pytest.approx(shares(drawn), abs=0.03)


def test_what_is_played_uniformly_or_purely_has_zeros_for_values(tmp_path):
    uniform = load_policy(frozen(tmp_path / "uniform", played="uniform", zeros=True), "c", member=0, seed=0)
    mask = np.array([False, True, True, False])
    assert shares(uniform) == pytest.approx(np.full(4, 0.25), abs=0.03)
    assert shares(uniform, action_mask=mask) == pytest.approx(mask / 2, abs=0.03)
    pure = load_policy(frozen(tmp_path / "pure", played="greedy", zeros=True), "c", member=0)
    assert pure.act(SEEN) == 0
    assert pure.act(SEEN, mask) == 1


def test_uniform_play_doesnt_depend_on_values(tmp_path):
    assert shares(load_policy(frozen(tmp_path, played="uniform"), "a", member=1, seed=0)) == pytest.approx(
        np.full(4, 0.25), abs=0.03
    )


def test_a_mixture_draws_a_member_by_its_share_and_keeps_it_for_the_episode(tmp_path):
    mixture = load_mixture(frozen(tmp_path, played="greedy"), "b", seed=0)
    with pytest.raises(RuntimeError, match=r"call begin\(\)"):
        mixture.act(SEEN)
    seen = np.random.default_rng(0).normal(size=(50, 3))
    members = {number: load_policy(tmp_path, "b", member=number).act(seen).tolist() for number in (0, 2)}
    assert members[0] != members[2]
    drawn = [mixture.begin() for _ in range(4000)]
    assert np.bincount(drawn) / 4000 == pytest.approx([0.25, 0, 0.75], abs=0.03)
    for _ in range(10):
        number = mixture.begin()
        assert mixture.act(seen).tolist() == mixture.act(seen).tolist() == members[number]


def test_teammates_are_played_by_the_same_member_and_opponents_draw_for_themselves(tmp_path):
    frozen(tmp_path, players=(PLAYERS[0] | {"mixture": [0.5, 0.5, 0.0]}, PLAYERS[1]))
    a, b, c = (load_mixture(tmp_path, agent, seed=3) for agent in "abc")
    drawn = np.array([[one.begin() for one in (a, b, c)] for _ in range(400)])
    assert (drawn[:, 0] == drawn[:, 1]).all()
    assert (drawn[:, 0] == drawn[:, 2]).mean() == pytest.approx(0.5, abs=0.1)
    seen = np.tile(SEEN, (200, 1))
    assert a.act(seen).tolist() != b.act(seen).tolist()


def test_what_isnt_there_is_answered_with_what_is(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no population; runs with population"):
        load_policy(tmp_path, "a", member=0)
    frozen(tmp_path, kept=((0, 0), (0, 2), (1, 1)))
    with pytest.raises(KeyError, match=r"no agent 'z'.*agents: a, b, c"):
        load_mixture(tmp_path, "z")
    for wrong in (3, -1):
        with pytest.raises(KeyError, match=f"plays 'b', has no member {wrong}; members: 0 … 2"):
            load_policy(tmp_path, "b", member=wrong)
    with pytest.raises(KeyError, match=r"member 1 of population 0 wasn't kept \(some\); kept: 0, 2"):
        load_policy(tmp_path, "a", member=1)
    (tmp_path / "population" / "policies" / "1-1-side1.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="lacks the policy of member 1 for 'c'"):
        load_policy(tmp_path, "c", member=1)
    (tmp_path / "population" / "policies" / "kept.json").unlink()
    with pytest.raises(FileNotFoundError, match="=exact has none"):
        load_mixture(tmp_path, "a")


def test_files_of_members_that_arent_kept_any_more_are_removed(tmp_path):
    frozen(tmp_path)
    frozen(tmp_path, kept=((0, 2), (1, 2)))
    assert {path.name for path in (tmp_path / "population" / "policies").glob("*")} == {
        "kept.json", "0-2-side0.safetensors", "1-2-side1.safetensors",
    }  # fmt: skip


@pytest.mark.parametrize("groups", ["shared", "separate"])
def test_members_of_a_run_play_what_its_strategy_is_made_of(tmp_path, groups):
    inline.train(tmp_path, *KUHN, "population=psro", f"groups={groups}")
    game = whole_game(make_env(compose(["env=openspiel_fast/kuhn_poker"]), 1))
    assert game is not None
    kept = json.loads((tmp_path / "population" / "policies" / "kept.json").read_text())
    assert kept["kept"] == "all members"
    policies = []
    for seat, player in enumerate(kept["players"]):
        (agent,) = player["agents"]
        mine = np.flatnonzero(game.player == seat)
        views = game.views[game.seen[mine[np.unique(game.state[mine], return_index=True)[1]], seat]]
        members = [marl_hpc.load_policy(tmp_path, agent, member=k) for k in range(len(player["mixture"]))]
        tables = np.stack([np.eye(game.actions)[member.act(views, game.legal[seat])] for member in members])
        policies.append(mixture_policy(game, seat, tables, np.array(player["mixture"])))
        mixture = marl_hpc.load_mixture(tmp_path, agent, seed=0)
        assert player["mixture"][mixture.begin()] > 0
    written = json.loads((tmp_path / "population" / "policy.json").read_text())
    found = json.loads(json.dumps(to_openspiel(game, policies)))
    assert written.keys() == found.keys()
    for state, chances in written.items():
        np.testing.assert_allclose(chances, found[state], atol=1e-9)


def test_of_many_members_those_that_play_and_the_newest_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(growth, "MOST_KEPT", 3)
    inline.train(tmp_path, *KUHN, "population=fictitious_play")
    kept = json.loads((tmp_path / "population" / "policies" / "kept.json").read_text())
    assert kept["members"] == ["0/1", "0/2", "0/3"]
    assert kept["kept"].startswith("of 4 members those with a share")
    with pytest.raises(KeyError, match="member 0 of population 0 wasn't kept"):
        load_policy(tmp_path, "player_0", member=0)
    assert load_mixture(tmp_path, "player_1", seed=0).begin() in (1, 2, 3)
