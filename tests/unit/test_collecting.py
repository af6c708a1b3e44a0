"""What workers collect in turn-based play, and what is learned from it: against PettingZoo's own account of each agent's turns."""

import importlib

import pytest
import torch
from rigs import inline
from rigs.games import Relay

from marl_hpc.algorithms.dqn import DQN
from marl_hpc.comm.peers import LocalPeer
from marl_hpc.storage.fragments import unpack

COPIES, STEPS = 3, 60
GAMES = {
    "tictactoe": ("env=classic/tictactoe", lambda: importlib.import_module("pettingzoo.classic.tictactoe_v3").env()),
    "relay": ("env.name=rigs.games:in_turns", Relay),
}
games = pytest.mark.parametrize("game", GAMES)


def collected(folder, *overrides):
    """(the learner's one agent, the fields of the first fragment) with policies as they are before any learning."""
    small = [f"rollout.envs={COPIES}", f"rollout.fragment={STEPS}", "budget.env_steps=1000", "dtype=float64"]
    rank = inline.rank(folder, *small, *overrides)
    peers = [[LocalPeer("shard", shard)] for shard in (rank.builder.parameter(0), rank.builder.dataset(0))]
    learner, worker = rank.builder.learner(0, *peers), rank.builder.worker(0, *peers, rank.clock)
    learner.publish()
    assert worker.step()
    agent = learner.replicas[0].agent
    return agent, unpack(learner.dataset.sample(0, agent.interface.name, 0, 1).parts, agent.interface, "float64")


def episodes_of(batch, spec):
    """(copy, [(step, agent, action)]) of each episode that began and ended in the fragment."""
    over = torch.cat([batch["first"][1:], torch.zeros(1, COPIES, dtype=torch.bool)])
    for b in range(COPIES):
        moves = []
        for t in range(STEPS):
            (acts,) = torch.nonzero(batch["shared/active"][t, b]).flatten().tolist()
            moves.append((t, acts, int(batch["shared/action"][t, b, acts])))
            if over[t, b]:
                yield b, moves
                moves = []


def turns_of(env, moves):
    """{agent: [what it got after each of its moves, up to its next one or its end]}, by `last`."""
    env.reset(seed=0)
    got, names, moves = {}, list(env.possible_agents), list(moves)
    for agent in env.agent_iter():
        _, reward, terminated, truncated, _ = env.last()
        if agent in got:
            got[agent].append(reward)
        if terminated or truncated:
            env.step(None)
            continue
        _, mover, action = moves.pop(0)
        assert names[mover] == agent
        got.setdefault(agent, [])
        env.step(action)
    assert not moves
    return {names.index(agent): rewards for agent, rewards in got.items()}


@games
def test_each_turn_is_learned_with_what_its_agent_gets_from_there_on(tmp_path, game):
    """γ = λ = 1 and a critic that says 0: the target is the sum of the agent's rewards up to its own end."""
    plain = ["algorithm.gamma=1", "algorithm.gae_lambda=1", "algorithm.normalize_values=false"]
    agent, batch = collected(tmp_path, GAMES[game][0], *plain)
    with torch.no_grad():
        for parameter in agent.algorithm.critic.parameters():
            parameter.zero_()
    result, compared, died, late = agent.algorithm.with_advantages(batch), 0, 0, 0
    for b, moves in episodes_of(batch, agent.interface):
        got = turns_of(GAMES[game][1](), moves)
        for mover, rewards in got.items():
            steps = [t for t, who, _ in moves if who == mover]
            assert len(steps) == len(rewards)
            for k, t in enumerate(steps):
                assert result["known"][t, b, mover]
                assert result["target"][t, b, mover].item() == pytest.approx(sum(rewards[k:]), abs=1e-9)
                compared += 1
        if game == "tictactoe":
            last = moves[-1][1]
            outcome = [got[mover][-1] for mover in (last, 1 - last)]
            assert outcome in ([1, -1], [0, 0])
            loses = [t for t, who, _ in moves if who != last][-1]  # its last action is a step before the end
            assert loses == moves[-1][0] - 1
            assert result["target"][loses, b, 1 - last].item() == outcome[1]
        ends = batch["shared/terminated"][moves[0][0] : moves[-1][0], b]
        died += int(ends.any())
        late += any(who == 3 for _, who, _ in moves)
    assert compared > 60
    if game == "relay":  # some die in the middle of an episode, and who is born late has turns of its own
        assert died > 2
        assert late > 2


@games
def test_each_turn_of_value_learning_has_what_its_agent_gets_up_to_its_next_turn(tmp_path, game):
    """With values of 0 one-step targets are the rewards on the way to the next turn, an ending by another's move included."""
    agent, batch = collected(tmp_path, GAMES[game][0], "algorithm=dqn", "algorithm.gamma=1")
    assert isinstance(agent.algorithm, DQN)
    zero = torch.zeros_like(batch["shared/reward"])
    targets, known = agent.algorithm.targets(batch, zero, zero, team=False)
    losses = 0
    for b, moves in episodes_of(batch, agent.interface):
        for mover, rewards in turns_of(GAMES[game][1](), moves).items():
            steps = [t for t, who, _ in moves if who == mover]
            assert known[steps, b, mover].all()
            assert targets[steps, b, mover].tolist() == pytest.approx(rewards, abs=1e-9)
            losses += rewards[-1] <= -1
    assert losses > 2


def test_turns_that_are_open_at_the_fragments_end_are_left_out(tmp_path):
    agent, batch = collected(tmp_path, GAMES["relay"][0])
    known = agent.algorithm.with_advantages(batch)["known"]
    open_turns = 0
    for b, mover in ((b, mover) for b in range(COPIES) for mover in range(4)):
        acts = batch["shared/active"][:, b, mover]
        assert not known[~acts, b, mover].any()
        for t in torch.nonzero(acts).flatten().tolist():
            closes = batch["shared/active"][t + 1 :, b, mover].any() or batch["shared/next_active"][-1, b, mover]
            ends = (batch["shared/terminated"] | batch["shared/truncated"])[t:, b, mover].any()
            assert known[t, b, mover] == (closes or ends)
            open_turns += not (closes or ends)
    assert open_turns > 0
