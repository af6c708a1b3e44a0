"""Every paradigm with every kind of policy learns from what the same policy did: whole runs in this process."""

import json
import math

import pytest
import torch
from rigs import inline

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


# off-policy actor-critics: every action space with and without memory and masks, under every paradigm that they serve

OFF_POLICY = {
    "sac, independent": ["algorithm=sac", "paradigm=independent"],
    "sac, ctde": ["algorithm=sac", "paradigm=ctde"],
    "sac, ctde, shared critic": ["algorithm=sac", "paradigm=ctde", "algorithm.critic=shared"],
    "sac, ctde, own rewards": ["algorithm=sac", "paradigm=ctde", "team_reward=individual"],
    "maddpg": ["algorithm=maddpg", "paradigm=ctde"],
    "maddpg, shared critic": ["algorithm=maddpg", "paradigm=ctde", "algorithm.critic=shared"],
    "maddpg, own rewards": ["algorithm=maddpg", "paradigm=ctde", "team_reward=individual"],
}
BOARD = {
    "discrete": [],
    "discrete, masks": ["env.masked=true"],
    "several, masks": ["env.masked=true", "env.kind=several"],
    "box": ["env.kind=box"],
    "discrete and box": ["env.kind=mixed"],
}
SEQUENCES = {
    "one step": [],
    "three steps by priority": ["algorithm.n_step=3", "algorithm.priority_exponent=0.6"],
    "gru": ["algorithm.gru=6", "algorithm.chunk=5", "algorithm.burn_in=5"],
}
LITTLE = ["algorithm.starts=20", "algorithm.batch=8", "algorithm.samples_per_insert=2"]


# every two of algorithm, game and memory meet
TRIPLES = [(a, g, list(SEQUENCES)[(i + j) % 3]) for i, a in enumerate(OFF_POLICY) for j, g in enumerate(BOARD)]


@pytest.mark.parametrize(("algorithm", "game", "memory"), TRIPLES)
def test_off_policy_actor_critics_train_on_every_action_space(tmp_path, algorithm, game, memory):
    overrides = [*OFF_POLICY[algorithm], "env.name=rigs.games:board", *BOARD[game], *SEQUENCES[memory], *LITTLE]
    trains(tmp_path, overrides)


@pytest.mark.parametrize("algorithm", OFF_POLICY)
def test_off_policy_actor_critics_train_in_turns(tmp_path, algorithm):
    trains(tmp_path, [*OFF_POLICY[algorithm], "env=classic/tictactoe", *LITTLE])


def trains(tmp_path, overrides):
    run = inline.rank(tmp_path, *overrides)
    build, agents = run.build_learner, []

    def building(*arguments):
        learner = build(*arguments)
        agents.extend((replica.agent, replica.agent.policy_values()) for replica in learner.replicas)
        return learner

    run.build_learner = building
    assert run.run() == 0
    assert agents
    for agent, before in agents:
        assert [name for name, x in agent.policy_values().items() if torch.equal(x, before[name])] == []
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert any(name.startswith("loss/") for line in lines for name in line)
    assert all(math.isfinite(x) for line in lines for x in line.values())


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["algorithm=sac", "paradigm=centralized"], ["algorithm=sac", "independent or ctde", "algorithm=ppo"]),
        (["algorithm=sac", "algorithm.critic=shared"], ["algorithm.critic=shared", "paradigm=ctde"]),
        (["algorithm=sac", "algorithm.epsilon_start=0.5"], ["algorithm.epsilon_start", "known:"]),
        (["algorithm=maddpg"], ["algorithm=maddpg", "needs a team", "use algorithm=sac or dqn"]),
        (["algorithm=maddpg", "paradigm=centralized"], ["algorithm=maddpg", "needs a team", "paradigm=centralized"]),
        (["algorithm=maddpg", "paradigm=ctde", "algorithm.alpha=1"], ["algorithm.alpha", "known:"]),
        (["algorithm=maddpg", "paradigm=ctde", "algorithm.noise=0.2"], ["algorithm.noise=0.2", "boxes"]),
    ],
)
def test_off_policy_actor_critics_refuse_what_they_cannot_serve(tmp_path, overrides, words):
    with pytest.raises(ConfigError) as caught:
        inline.rank(tmp_path, "env.name=rigs.games:board", *overrides)
    assert [word for word in words if word not in str(caught.value)] == []
