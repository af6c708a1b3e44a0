"""Every algorithm in every paradigm, on every kind of action, with and without a memory: whole runs in this process.

What an algorithm serves stands here in a table of its own, written from the papers, not from what `check` says.
"""

import math
import re
from dataclasses import asdict
from itertools import product

import pytest
from rigs import inline

from marl_hpc import paradigms, train
from marl_hpc.algorithms import ALGORITHMS
from marl_hpc.compose import compose
from marl_hpc.config import ConfigError

PARADIGMS = {
    "independent": ["paradigm=independent"],
    "ctde": ["paradigm=ctde"],
    "ctde, shared critic": ["paradigm=ctde", "algorithm.critic=shared"],
    "ctde, own rewards": ["paradigm=ctde", "team_reward=individual"],
    "centralized": ["paradigm=centralized"],
    "centralized, autoregressive": ["paradigm=centralized", "algorithm.autoregressive=true", "team_reward=sum"],
}
GAMES = {
    "spread": ["env=mpe/simple_spread"],
    "spread, continuous": ["env=mpe/simple_spread", "env.continuous_actions=true"],
    "speaker and listener": ["env=mpe/simple_speaker_listener"],
    "masks": ["env.masked=true"],
    "masks, several choices": ["env.masked=true", "env.kind=several"],
    "discrete and box": ["env.kind=mixed"],
    "separate groups": ["groups=separate"],
}
MEMORY = {"no memory": [], "gru": ["algorithm.gru=6", "algorithm.chunk=10"]}


# every two of paradigm, game and memory meet
PAIRS = [(p, g, list(MEMORY)[(i + j) % 2]) for i, p in enumerate(PARADIGMS) for j, g in enumerate(GAMES)]


@pytest.mark.parametrize(("paradigm", "game", "memory"), PAIRS)
def test_first_importance_ratio_is_one_without_lag(tmp_path, paradigm, game, memory):
    place = [] if GAMES[game][0].startswith("env=") else ["env.name=rigs.games:board"]
    less = ["rollout.max_lag=0", "algorithm.epochs=2", "algorithm.minibatches=2"]
    lines = inline.train(tmp_path, *less, *place, *GAMES[game], *PARADIGMS[paradigm], *MEMORY[memory])
    learned = [line for line in lines if "throughput/env_steps_per_s" in line]
    assert len(learned) == 2
    deviations = [x for line in learned for name, x in line.items() if name.endswith("first_ratio_deviation")]
    assert len(deviations) >= 2
    assert max(deviations) < 1e-5
    assert max(x for line in learned for name, x in line.items() if name.endswith("/kl")) > 1e-9
    assert all(math.isfinite(x) for line in lines for x in line.values())


TURNS = {
    "tictactoe": ["env=classic/tictactoe"],
    "leduc": ["env=classic/leduc_holdem"],
    "leduc, separate groups": ["env=classic/leduc_holdem", "groups=separate"],
}


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("game", TURNS)
@pytest.mark.parametrize("paradigm", ["independent", "ctde, own rewards", "centralized, autoregressive"])
def test_first_importance_ratio_is_one_without_lag_in_turns_too(tmp_path, paradigm, game, memory):
    """Players wait, have masks only when it is their turn, and remember only what they saw then."""
    less = ["rollout.max_lag=0", "rollout.fragment=30", "budget.env_steps=120", "algorithm.epochs=2", "algorithm.minibatches=1"]
    lines = inline.train(tmp_path, *less, *TURNS[game], *PARADIGMS[paradigm], *MEMORY[memory])
    learned = [line for line in lines if "throughput/env_steps_per_s" in line]
    deviations = [x for line in learned for name, x in line.items() if name.endswith("first_ratio_deviation")]
    assert len(deviations) == 2 * (2 if paradigm == "independent" and "separate" in game else 1)
    assert max(deviations) < 1e-5
    assert max(x for line in learned for name, x in line.items() if name.endswith("/kl")) > 1e-9
    assert all(math.isfinite(x) for line in lines for x in line.values())


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("paradigm", PARADIGMS)
def test_a2c_trains_under_every_paradigm(tmp_path, paradigm, lag):
    overrides = ["algorithm=a2c", "env.name=rigs.games:board", "env.masked=true", "algorithm.gru=6", f"rollout.max_lag={lag}"]
    lines = inline.train(tmp_path, *overrides, *PARADIGMS[paradigm], "budget.env_steps=160")
    learned = [line for line in lines if "throughput/env_steps_per_s" in line]
    deviations = [x for line in learned for name, x in line.items() if name.endswith("first_ratio_deviation")]
    assert len(learned) == 4
    # one step later the policy is another one
    assert (max(deviations) < 1e-5) == (lag == 0)


BOARD = ["env.name=rigs.games:board", "env.masked=true", "algorithm.gru=6"]
LATE = {
    **{paradigm: ["algorithm.epochs=2", *BOARD, *chosen] for paradigm, chosen in PARADIGMS.items()},
    "happo": ["algorithm=happo", "algorithm.epochs=2", "paradigm=ctde", "groups=separate", *BOARD],
    "a2c": ["algorithm=a2c", *BOARD],
    "turns": ["env=classic/leduc_holdem", "algorithm.epochs=2", "paradigm=ctde", "team_reward=individual"],
}


@pytest.mark.parametrize("run", LATE)
def test_data_of_an_older_policy_is_corrected_everywhere(tmp_path, run):
    vtrace = ["algorithm.correction=vtrace", "algorithm.lr=0.01"]
    lines = inline.train(tmp_path, *LATE[run], *vtrace, "rollout.max_lag=1", "budget.env_steps=160")
    learned = [line for line in lines if "throughput/env_steps_per_s" in line]
    weights, truncated = (
        [x for line in learned for name, x in line.items() if name.endswith(end)]
        for end in ("importance_weight", "truncated_weights")
    )
    assert len(weights) == len(truncated) >= 4
    assert 0 < min(weights) < 0.999 < max(weights) < 1 + 1e-5  # the first batch is the first policy's
    assert 0 == min(truncated) < max(truncated) < 1
    assert all(math.isfinite(x) for line in lines for x in line.values())


SPACES = {"discrete": [], "masked": ["env.masked=true"], "several": ["env.kind=several"], "box": ["env.kind=box"]}
EVERY_PARADIGM, EVERY_SPACE = ("independent", "ctde", "centralized"), tuple(SPACES)
CHOICES = ("discrete", "masked", "several")
# algorithm -> the paradigms and the actions that it is defined for, and what a refusal has to speak of: in another paradigm, for
# other actions
TABLE = {
    # a policy gradient needs log-probabilities only: Schulman et al. 2017, Mnih et al. 2016
    "ppo": (EVERY_PARADIGM, EVERY_SPACE, (), ()),
    "a2c": (EVERY_PARADIGM, EVERY_SPACE, (), ()),
    # a policy gradient that is drawn to the uniform policy over some choices: Sokota et al. 2023
    "mmd": (EVERY_PARADIGM, CHOICES, (), ("algorithm=mmd", "continuous", "algorithm=ppo")),
    # the largest of several values, and the average of what was largest; each agent alone: Heinrich & Silver 2016
    "nfsp": (("independent",), CHOICES, ("algorithm=nfsp", "needs paradigm=independent"), ("algorithm=nfsp", "Box", "algorithm=ppo")),
    # critics of neighbors on a graph: Qu et al. 2020
    "scalable_ac": ((), EVERY_SPACE, ("algorithm=scalable_ac", "needs paradigm=networked", "algorithm=a2c"), ()),
    # several agents that improve one team's value, each by its own policy: Kuba et al. 2022
    "happo": (("ctde",), EVERY_SPACE, ("algorithm=happo", "paradigm=ctde", "algorithm=ppo"), ()),
    # sums over one agent's choices, with a critic of all agents' actions: Foerster et al. 2018
    "coma": (
        ("ctde",), ("discrete", "masked"), ("algorithm=coma", "paradigm=ctde", "algorithm=a2c"), ("algorithm=coma", "algorithm=ppo"),
    ),
    # the largest of several values: Mnih et al. 2015; each agent alone: Tan 1993
    "dqn": (
        ("independent",), CHOICES, ("algorithm=dqn", "needs paradigm=independent"), ("algorithm=dqn", "Box", "algorithm=ppo"),
    ),
    # the team's value from its agents': Sunehag et al. 2018, Rashid et al. 2018
    "vdn": (("ctde",), CHOICES, ("algorithm=vdn", "paradigm=ctde"), ("algorithm=vdn", "Box", "algorithm=ppo")),
    "qmix": (("ctde",), CHOICES, ("algorithm=qmix", "paradigm=ctde"), ("algorithm=qmix", "Box", "algorithm=ppo")),
    # a soft value of any action, with a critic of one agent or of all: Haarnoja et al. 2018, Christodoulou 2019
    "sac": (("independent", "ctde"), EVERY_SPACE, ("algorithm=sac", "paradigm=independent or ctde", "algorithm=ppo"), ()),
    # critics of all agents' actions, gradients through the own one: Lowe et al. 2017
    "maddpg": (("ctde",), EVERY_SPACE, ("algorithm=maddpg", "needs a team", "paradigm=ctde"), ()),
    # neighbors agree on critics of the state and everybody's choices: Zhang et al. 2018
    "networked_ac": (
        ("networked",), ("discrete", "masked"), ("algorithm=networked_ac", "needs paradigm=networked", "algorithm=a2c"),
        ("algorithm=networked_ac", "must be discrete", "algorithm=a2c"),
    ),
}  # fmt: skip
LITTLE = {
    "ppo": ["epochs=2", "minibatches=2"], "mmd": ["epochs=2", "minibatches=2"], "a2c": [], "scalable_ac": [], "networked_ac": [], "happo": ["epochs=1", "minibatches=2"],
    "coma": ["critic_steps=2"],
    **{name: ["batch=4", "starts=1", "samples_per_insert=1"] for name in ("dqn", "vdn", "qmix", "sac", "maddpg", "nfsp")},
}  # fmt: skip
REMEMBER = {"no memory": [], "gru": ["algorithm.gru=4", "algorithm.chunk=4"]}


def asked(algorithm, paradigm, space, memory):
    separate = {
        "happo": ["groups=separate"],
        "nfsp": ["population=nfsp", "population.every_steps=16", "population.anticipatory=1.0", "algorithm.average_batch=4"],
    }.get(algorithm, [])
    return [
        f"algorithm={algorithm}", f"paradigm={paradigm}", "env.name=rigs.games:board", *SPACES[space], *REMEMBER[memory], *separate,
        *(f"algorithm.{option}" for option in LITTLE[algorithm]), "rollout.fragment=8",
    ]  # fmt: skip


def serves(algorithm, paradigm, space, memory):
    remembers = memory == "no memory" or algorithm != "nfsp"  # what it imitates comes in any order
    return paradigm in TABLE[algorithm][0] and space in TABLE[algorithm][1] and remembers


def test_every_algorithm_has_a_row():
    assert set(TABLE) == set(LITTLE) == set(ALGORITHMS)


COMBINATIONS = list(product(TABLE, EVERY_PARADIGM, EVERY_SPACE, REMEMBER))


@pytest.mark.parametrize(("algorithm", "paradigm", "space", "memory"), [x for x in COMBINATIONS if serves(*x)])
def test_what_an_algorithm_serves_trains(tmp_path, algorithm, paradigm, space, memory):
    three = ["rollout.envs=1", "budget.env_steps=24", "algorithm.hidden=[4]"]
    lines = inline.train(tmp_path, *asked(algorithm, paradigm, space, memory), *three)
    learned = [line for line in lines if "throughput/env_steps_per_s" in line]
    assert [line["learner_steps"] for line in learned] == [1, 2, 3]
    interfaces = ["x_0/", "y_0/"] if paradigm == "independent" else [""]
    for line in learned:
        assert {f"loss/{name}value" for name in interfaces} <= set(line)
        assert {name: x for name, x in line.items() if not math.isfinite(x)} == {}
    for name in interfaces:
        assert len({line[f"loss/{name}value"] for line in learned}) == 3


@pytest.mark.parametrize(("algorithm", "paradigm", "space", "memory"), [x for x in COMBINATIONS if not serves(*x)])
def test_what_an_algorithm_does_not_serve_is_refused_before_a_rank_starts(algorithm, paradigm, space, memory):
    config = compose(asked(algorithm, paradigm, space, memory))
    with pytest.raises(ConfigError) as refused:
        paradigms.plan(config, train.make_env(config, 1).spec)
    text, (others, spaces, elsewhere, otherwise) = str(refused.value), TABLE[algorithm]
    if paradigm in others and space in spaces:
        assert "algorithm.gru=4" in text
        return
    reasons = [words for words, wrong in ((elsewhere, paradigm not in others), (otherwise, space not in spaces)) if wrong]
    assert all(reasons)
    assert any(all(word in text for word in words) for words in reasons)
    assert (f"got paradigm={paradigm}" in text) == ("needs paradigm=" in text)
    advised = re.search(r"use algorithm=([\w, ]+)", text)
    assert advised is not None
    # whoever follows the advice must not be refused again
    assert [
        name for name in re.split(r", | or | ", advised[1]) if name in TABLE and not serves(name, paradigm, space, memory)
    ] == []


REFUSED = [
    (["algorithm=happo", "paradigm=ctde"], ["algorithm=happo", "'x_0' has 2 agents", "groups=separate"]),
    *(
        ([f"algorithm={name}", "paradigm=ctde", "groups=separate", "team_reward=individual"], ["team_reward must be mean or sum"])
        for name in ("happo", "coma", "vdn", "qmix")
    ),
    (["paradigm=centralized", "team_reward=individual"], ["paradigm=centralized", "team_reward must be mean or sum"]),
    (["algorithm.autoregressive=true"], ["algorithm.autoregressive=true", "paradigm=centralized"]),
    (["algorithm.critic=shared"], ["algorithm.critic=shared", "paradigm=ctde"]),
    (["algorithm.rho_bar=2"], ["algorithm.rho_bar=2.0", "algorithm.correction=vtrace"]),
    (
        ["algorithm=coma", "paradigm=ctde", "algorithm.correction=vtrace"],
        ["algorithm.correction=vtrace", "algorithm=coma", "algorithm=ppo"],
    ),
    (["algorithm.gru=4", "algorithm.chunk=3"], ["rollout.fragment=8", "multiple of algorithm.chunk=3"]),
    (["algorithm=dqn", "algorithm.n_step=9"], ["rollout.fragment=8", "9 steps", "longer"]),
    (["algorithm=dqn", "algorithm.starts=9", "algorithm.capacity=8"], ["algorithm.starts=9", "algorithm.capacity=8"]),
    (["algorithm=dqn", "paradigm=centralized"], ["paradigm=independent"]),
    (["algorithm.chunk=3"], ["algorithm.chunk=3", "algorithm.gru=0"]),
    (["team_reward=sum"], ["team_reward=sum", "here are none"]),
]


@pytest.mark.parametrize(("overrides", "words"), REFUSED, ids=[" ".join(overrides) for overrides, _ in REFUSED])
def test_refusals_are_the_answer_of_what_runs_before_any_rank(monkeypatch, overrides, words):
    """`prepare` is asked by the supervisor of rank 0, which raises what it says as a ConfigError before it starts a role."""
    answers = {}

    class Store:
        def __init__(self, address, key):
            pass

        def set(self, key, value):
            answers[key] = value

    monkeypatch.setattr(train, "StoreClient", Store)
    base = ["env.name=rigs.games:board", "rollout.fragment=8"]
    job = {"store": ["", 0], "key": "00"}
    train.prepare({**job, "config": asdict(compose([*base, *overrides]))}, None)
    assert set(answers["prepared"]) == {"wrong"}
    assert [word for word in words if word not in answers["prepared"]["wrong"]] == []
    train.prepare({**job, "config": asdict(compose(base))}, None)
    assert set(answers["prepared"]) == {"spec", "cuda"}
