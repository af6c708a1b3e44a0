"""Every paradigm with every kind of policy learns from what the same policy did: whole runs in this process."""

import math

import pytest
from rigs import inline

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
