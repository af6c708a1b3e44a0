"""SAC and MADDPG on every action space, with and without masks and memories, under every paradigm that they serve: whole runs in this
process."""

import json
import math

import pytest
import torch
from rigs import inline

from marl_hpc.config import ConfigError

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
    build, agents = run.builder.learner, []

    def building(*arguments):
        learner = build(*arguments)
        agents.extend((replica.agent, replica.agent.policy_values()) for replica in learner.replicas)
        return learner

    run.builder.learner = building
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
        (["algorithm=maddpg"], ["algorithm=maddpg", "needs a team", "use algorithm=sac or ppo"]),
        (["algorithm=maddpg", "paradigm=centralized"], ["algorithm=maddpg", "needs a team", "paradigm=centralized"]),
        (["algorithm=maddpg", "paradigm=ctde", "algorithm.alpha=1"], ["algorithm.alpha", "known:"]),
        (["algorithm=maddpg", "paradigm=ctde", "algorithm.noise=0.2"], ["algorithm.noise=0.2", "boxes"]),
    ],
)
def test_off_policy_actor_critics_refuse_what_they_cannot_serve(tmp_path, overrides, words):
    with pytest.raises(ConfigError) as caught:
        inline.rank(tmp_path, "env.name=rigs.games:board", *overrides)
    assert [word for word in words if word not in str(caught.value)] == []
