"""Networked actor-critic: its updates transcribed from the paper into NumPy, and critics that agree on exact values.

N agents, S states one-hot, A choices; the oracle goes agent by agent and sample by sample.
"""

import numpy as np
import pytest
import torch
from rigs import inline

from marl_hpc import mixing, paradigms, topology
from marl_hpc.agents import NetworkedAgent
from marl_hpc.algorithms.networked_ac import NetworkedAC, NetworkedACConfig
from marl_hpc.comm.exchange_plan import ExchangePlan
from marl_hpc.comm.graphs import GraphExchange
from marl_hpc.comm.peers import LocalPeer
from marl_hpc.comm.transports import Nobody
from marl_hpc.compose import compose
from marl_hpc.config import ConfigError
from marl_hpc.envs.networked.average_reward import average_reward, differential_q, differential_value, product_policy
from marl_hpc.storage.fragments import unpack
from marl_hpc.train import make_env
from marl_hpc.types import ActionSpace, GroupSpec, InterfaceSpec

A, S = 2, 2


def interface_of(agents, mix="critic", states=S):
    names = tuple(f"a{i}" for i in range(agents))
    group = GroupSpec(name="g", agents=names, observation_shape=(states,), action_space=ActionSpace(kind="discrete", n=A))
    return InterfaceSpec(
        name="g",
        paradigm="networked",
        groups=(group,),
        critic_sees="state",
        stacked=True,
        mix=mix,
        state_size=states,
        joint_agents=names,
    )


def agent_of(graph, mix="critic", states=S, **options):
    """A NetworkedAgent in float64 whose agents differ from each other."""
    weights, n = mixing.metropolis_hastings(graph), graph.agents
    exchange = GraphExchange(np.arange(n), [ExchangePlan(weights, np.zeros(n, int), 0)], None, Nobody())
    agent = NetworkedAgent(
        NetworkedAC, NetworkedACConfig(**options), interface_of(n, mix, states), exchange, device=torch.device("cpu"),
        dtype=torch.float64, seed=0,
    )  # fmt: skip
    with torch.no_grad():
        agent.parameters.values += 0.5 * torch.randn(
            agent.parameters.values.shape, dtype=torch.float64, generator=torch.manual_seed(1)
        )
    return agent, weights.toarray()


def batch_of(agents, steps, copies, seed=0):
    """A batch of random transitions; episodes end at `END`, those of copy 0 by truncation and of copy 1 by termination."""
    random = np.random.default_rng(seed)
    state = random.integers(0, S, (steps + 1, copies))
    action = random.integers(0, A, (steps, copies, agents))
    none = np.zeros((steps, copies, agents), bool)
    truncated, terminated, reached = none.copy(), none.copy(), state[1:].copy()
    truncated[END, 0] = terminated[END, 1] = True
    reached[END] = random.integers(0, S, copies)  # the next episode starts somewhere else
    ended = truncated | terminated
    reached[:, 2:] = state[1:, 2:]
    sight = np.eye(S)
    fields = {
        "first": np.zeros((steps, copies), bool), "state": sight[state[:-1]], "next_state": sight[reached], "joint_action": action,
        "g/observation": sight[state[:-1]][:, :, None].repeat(agents, 2), "g/action": action, "g/reward": random.normal(1, 1, action.shape),
        "g/active": ~none, "g/next_active": ~ended, "g/truncated": truncated, "g/terminated": terminated,
        "over": ended.any(-1), "cut": truncated.any(-1),
    }  # fmt: skip
    return {name: torch.from_numpy(x) for name, x in fields.items()}


END = 1


def network(row, inputs):
    """A linear network's row: weights [D, outputs], then biases."""
    outputs = len(row) // (len(inputs) + 1)
    return inputs @ row[: len(inputs) * outputs].reshape(len(inputs), outputs) + row[len(inputs) * outputs :]


def softmax(x):
    return np.exp(x - x.max()) / np.exp(x - x.max()).sum()


def table(state, actions):
    """One number for each state and joint action, joint actions first, agent 0's changing slowest; and 1 for the bias."""
    phi = np.zeros(A ** len(actions) * S + 1)
    code = int("".join(map(str, actions)), A)
    phi[code * S + state], phi[-1] = 1, 1
    return phi


def sight(state):
    return np.append(np.eye(S)[state], 1)


def transcribed(batch, theta, w, v, mu, critic, mixed):
    """One step of algorithm 1 (`w` are its critics) or 2 (`v` and, for λ, `w`), averaged over samples: new (θ, w, v, μ) before
    mixing is `mixed`. Learning rates 1, t = 1."""
    x = {name: value.numpy() for name, value in batch.items()}
    steps, copies, agents = x["g/action"].shape
    places, reached = x["state"].argmax(-1), x["next_state"].argmax(-1)
    new = [np.zeros_like(part) for part in (theta, w, v)]
    earned = np.zeros(agents)
    for i in range(agents):
        count = 0
        for t in range(steps):
            for b in range(copies):
                cut, restart = t == END and b == 0, t == END and b == 1
                if critic == "action_value" and (cut or t == steps - 1):
                    continue  # nobody's next action is known
                count += 1
                s, a, r = places[t, b], x["g/action"][t, b], x["g/reward"][t, b, i]
                after = places[t + 1, b] if restart else reached[t, b]
                pi = softmax(network(theta[i], sight(s)[:-1]))
                score = np.outer(sight(s), np.eye(A)[a[i]] - pi)  # ∇ log π_i
                if critic == "action_value":
                    q = table(s, a) @ w[i]
                    delta = r - mu[i] + table(after, x["g/action"][t + 1, b]) @ w[i] - q
                    new[1][i] += delta * table(s, a)
                    others = [table(s, [*a[:i], c, *a[i + 1 :]]) @ w[i] for c in range(A)]
                    advantage = q - pi @ others
                else:
                    error = sight(after) @ v[i] - sight(s) @ v[i] - mu[i]
                    new[2][i] += (r + error) * sight(s)
                    model = table(s, a) @ w[i]
                    new[1][i] += (r - model) * table(s, a)
                    advantage = model + error
                new[0][i] += advantage * score.ravel()
                earned[i] += r
        for part in new:
            part[i] /= count
        earned[i] /= count
    return theta + new[0], mixed @ (w + new[1]), mixed @ (v + new[2]), mu + (earned - mu)


def rows_of(agent):
    return [block.clone().numpy() for block in agent.blocks]


@pytest.mark.parametrize("mix", ["critic", "none"])
@pytest.mark.parametrize("critic", ["action_value", "state_value"])
@pytest.mark.parametrize("agents", [2, 3])
def test_an_update_is_the_papers(agents, critic, mix):
    agent, weights = agent_of(topology.ring(agents), mix, critic=critic, features="table")
    agent.algorithm.average += torch.arange(agents) + 0.5
    batch = batch_of(agents, steps=4, copies=5)
    theta, *critics = rows_of(agent)
    w, v = critics[-1], critics[0]  # algorithm 1 has no v: w again, and what becomes of it isn't looked at
    expected = transcribed(
        batch, theta, w, v, agent.algorithm.average.numpy(), critic, weights if mix == "critic" else np.eye(agents)
    )
    agent.learn(batch, torch.arange(5), total=5, seed=0, env_steps=0)
    found = rows_of(agent)
    np.testing.assert_allclose(found[0], expected[0], atol=1e-12)
    np.testing.assert_allclose(found[-1], expected[1], atol=1e-12)
    if critic == "state_value":
        np.testing.assert_allclose(found[1], expected[2], atol=1e-12)
    np.testing.assert_allclose(agent.algorithm.average.numpy(), expected[3], atol=1e-12)


class Chain:
    """A random problem of 3 agents whose chain stays uniform over states, whatever is done: transitions are mixtures of shifts. Chances are
    halves, so one batch holds every transition under uniform policies as often as it happens."""

    agents = 3

    def __init__(self):
        random = np.random.default_rng(3)
        joint = A**self.agents
        shifts = random.multinomial(2, np.ones(S) / S, joint)  # halves of each shift
        self.transition = np.stack([sum(np.roll(np.eye(S), k, 1) * q / 2 for k, q in enumerate(row)) for row in shifts])
        self.reward = random.normal(2, 1, (joint, S, self.agents))
        self.policy = np.full((S, joint), 1 / joint)

    def batch(self):
        found = [
            (s, a, after, b)
            for s in range(S) for a in range(len(self.reward)) for after in range(S)
            for b in range(len(self.reward)) for _ in range(round(2 * self.transition[a, s, after]))
        ]  # fmt: skip
        s, a, after, b = np.array(found).T
        actions = np.stack([np.stack(np.unravel_index(x, (A,) * self.agents), -1) for x in (a, b)])
        state, none = np.eye(S)[np.stack([s, after])], np.zeros((2, len(s), self.agents), bool)
        acts = ~none
        acts[1] = False  # the second step is there as what follows the first
        fields = {
            "first": none[..., 0], "state": state, "next_state": state[[1, 1]], "joint_action": actions, "g/action": actions,
            "g/observation": state[:, :, None].repeat(self.agents, 2), "g/reward": self.reward[a, s][None].repeat(2, 0),
            "g/active": acts, "g/next_active": ~none, "g/truncated": none, "g/terminated": none, "over": none[..., 0], "cut": none[..., 0],
        }  # fmt: skip
        return {name: torch.from_numpy(x) for name, x in fields.items()}

    def learned(self, mix="critic", updates=250, critic_lr=1.8, **options):
        """The agent after so many expected steps on uniform policies."""
        given = {"features": "table", "lr": 1e-30, "lr_exponent": 0.0, "critic_lr_exponent": 0.0, **options}
        agent, _ = agent_of(topology.star(self.agents), mix, critic_lr=critic_lr, **given)
        agent.blocks[0].zero_()
        batch = self.batch()
        columns = torch.arange(batch["first"].shape[1])
        for _ in range(updates):
            agent.learn(batch, columns, total=len(columns), seed=0, env_steps=0)
        return agent


CHAIN = Chain()


def tables_of(agent, place, inputs):
    """What each agent's critic says of every input [N, inputs], less the mean: constants don't count."""
    rows = rows_of(agent)[place]
    said = np.array([[network(row, x)[0] for x in inputs] for row in rows])
    return said - said.mean(1, keepdims=True)


PAIRS = [table(s, np.unravel_index(a, (A,) * 3))[:-1] for a in range(A**3) for s in range(S)]


def test_critics_of_a_static_policy_agree_on_the_differential_q_of_the_average_reward():
    exact = differential_q(CHAIN.transition, CHAIN.reward.mean(-1), CHAIN.policy).ravel()
    coarse, fine = (tables_of(CHAIN.learned(critic_lr=lr, updates=n), -1, PAIRS) for lr, n in ((1.8, 250), (0.9, 500)))
    for said in (coarse, fine):
        np.testing.assert_allclose(said.mean(0), exact - exact.mean(), atol=1e-4)
    apart = [np.abs(said - said.mean(0)).max() for said in (coarse, fine)]
    assert 0 < apart[1] < 0.6 * apart[0]  # a step's own part in an agent's critic goes away with the step


def test_critics_that_are_not_mixed_find_their_own_rewards_q():
    exact = differential_q(CHAIN.transition, CHAIN.reward, CHAIN.policy).reshape(-1, 3).T
    np.testing.assert_allclose(tables_of(CHAIN.learned("none"), -1, PAIRS), exact - exact.mean(1, keepdims=True), atol=1e-4)


def test_state_values_and_reward_models_agree_on_the_average_rewards():
    agent = CHAIN.learned(critic="state_value")
    value = differential_value(CHAIN.transition, CHAIN.reward.mean(-1), CHAIN.policy)
    np.testing.assert_allclose(tables_of(agent, 1, np.eye(S)).mean(0), value - value.mean(), atol=1e-4)
    model, mean = tables_of(agent, 2, PAIRS).mean(0), CHAIN.reward.mean(-1).ravel()
    np.testing.assert_allclose(model, mean - mean.mean(), atol=1e-4)


def test_each_agent_keeps_its_own_average_reward():
    agent = CHAIN.learned(updates=2)
    expected = average_reward(CHAIN.transition, CHAIN.reward, CHAIN.policy)
    np.testing.assert_allclose(agent.algorithm.average.numpy(), expected, atol=1e-12)


def test_a_linear_critic_over_pairs_gives_the_exact_gradient_of_the_average_reward():
    """Where states aren't told apart by what is done next, that is: transitions that don't depend on actions."""
    chain = Chain()
    chain.transition[:] = chain.transition[0]
    agent = chain.learned(features="pairs", critic_lr=0.3, updates=150)
    before = rows_of(agent)[0]
    batch = chain.batch()
    agent.algorithm.parameters.message.zero_()
    known = agent.algorithm.with_successors(batch)
    loss, _ = agent.algorithm.loss(known)
    loss.backward()
    found = -agent.parameters.values.grad[: before.size].numpy() / int(known["known"][..., 0].sum())

    def earned(logits):
        policies = [np.array([softmax(network(row, np.eye(S)[s])) for s in range(S)]) for row in logits.reshape(3, -1)]
        return average_reward(chain.transition, chain.reward.mean(-1), product_policy(np.array(policies)))

    logits, slope, step = before.ravel(), np.zeros(before.size), 1e-6
    for k in range(len(slope)):
        high, low = logits.copy(), logits.copy()
        high[k] += step
        low[k] -= step
        slope[k] = (earned(high) - earned(low)) / (2 * step)
    assert np.abs(slope).max() > 0.01
    apart = np.linalg.norm(found - slope) / np.linalg.norm(slope)
    assert apart < 0.2  # an agent's own rewards still weigh a little more


def test_steps_shrink_by_the_papers_exponents_and_mixing_tells_how_far_agents_are_apart():
    agent, _ = agent_of(topology.star(3), lr=0.5, critic_lr=0.2, average_lr=0.3)
    batch = batch_of(3, steps=4, copies=5)
    for t in range(1, 5):
        before, average = agent.parameters.values.detach().clone(), agent.algorithm.average.clone()
        mixed = agent.mixed
        agent.mixed = []  # the step alone
        agent.learn(batch, torch.arange(5), total=5, seed=0, env_steps=0)
        agent.mixed = mixed
        moved, gradient = agent.parameters.values.detach() - before, agent.parameters.values.grad
        actors = agent.blocks[0].numel()
        torch.testing.assert_close(moved[:actors], -0.5 * t**-0.85 * gradient[:actors])
        torch.testing.assert_close(moved[actors:], -0.2 * t**-0.65 * gradient[actors:])
        known = agent.algorithm.with_successors(batch)["known"]
        mean = (batch["g/reward"] * known).sum((0, 1)) / known.sum((0, 1))
        torch.testing.assert_close(agent.algorithm.average, average + 0.3 * t**-0.65 * (mean - average))
    found = agent.learn(batch, torch.arange(5), total=5, seed=0, env_steps=0)["consensus/error"]
    critics = rows_of(agent)[1]
    expected = np.sqrt(((critics - critics.mean(0)) ** 2).sum(1).mean()) / np.linalg.norm(critics.mean(0))
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("critic", ["action_value", "state_value"])
def test_pieces_of_a_batch_are_steps_one_after_the_other(critic):
    """As many steps as the fragment has are the paper's online algorithm: here against batches of a single transition."""
    whole, _ = agent_of(topology.star(3), critic=critic, critic_lr=0.2, steps=4)
    single, _ = agent_of(topology.star(3), critic=critic, critic_lr=0.2)
    batch = batch_of(3, steps=4, copies=2)
    batch = {name: x[:, :1] for name, x in batch.items()}
    whole.learn(batch, torch.arange(1), total=1, seed=0, env_steps=0)
    pieces = list(single.algorithm.with_successors(batch).items())
    for t in range(4):
        single.algorithm.with_successors = lambda _, t=t: {name: x[t : t + 1] for name, x in pieces}
        single.learn(batch, torch.arange(1), total=1, seed=0, env_steps=0)
    torch.testing.assert_close(whole.parameters.values, single.parameters.values)
    assert whole.updates == 4


def test_networks_as_critics_learn_what_linear_ones_cannot():
    """Two agents are paid for choosing alike: no sum of what each does says that."""
    random = torch.Generator().manual_seed(0)
    action = torch.randint(A, (2, 32, 2), generator=random)
    batch = batch_of(2, steps=2, copies=32)
    ended = {name: torch.zeros_like(batch[name]) for name in ("g/truncated", "g/terminated")}
    alike = (action[..., :1] == action[..., 1:]).double().expand(-1, -1, 2)
    state = torch.ones_like(batch["state"]) / S
    batch |= {"joint_action": action, "g/action": action, "g/reward": alike, "g/next_active": ~ended["g/truncated"], **ended}
    batch |= {"state": state, "next_state": state, "over": ended["g/truncated"].any(-1), "cut": ended["g/truncated"].any(-1)}
    errors = {}
    for hidden in ([], [16]):
        agent, _ = agent_of(
            topology.ring(2), features="beside", critic_hidden=hidden, critic="state_value", critic_lr_exponent=0.0, critic_lr=0.4, lr=1e-9,
        )  # fmt: skip
        for _ in range(250):
            metrics = agent.learn(batch, torch.arange(32), total=32, seed=0, env_steps=0)
        errors[len(hidden)] = metrics["loss/reward_model"]
    assert errors[0] > 0.1
    assert errors[1] < 0.01


MDP = ["env=networked/mdp", "env.agents=3", "env.states=4", "paradigm=networked", "algorithm=networked_ac", "algorithm.hidden=[]"]


def test_rollout_workers_write_the_state_and_everybodys_actions(tmp_path):
    rank = inline.rank(tmp_path, *MDP)
    peers = [[LocalPeer("shard", shard)] for shard in (rank.builder.parameter(0), rank.builder.dataset(0))]
    learner, worker = rank.builder.learner(0, *peers), rank.builder.worker(0, *peers, rank.clock)
    learner.publish()
    assert worker.step()
    interface = learner.replicas[0].agent.interface
    batch = unpack(learner.dataset.sample(0, interface.name, 0, 1).parts, interface, "float32")
    assert interface.joint_agents == ("agent_0", "agent_1", "agent_2")
    torch.testing.assert_close(batch["joint_action"], batch["shared/action"])
    assert (batch["joint_action"].sum(-1) % 3 != 0).any()  # agents differ
    torch.testing.assert_close(batch["state"], batch["shared/observation"][:, :, 0])


def test_a_resumed_run_goes_on_as_if_it_had_never_stopped(tmp_path):
    common = [*MDP, "rollout.max_lag=0", "checkpoint.every_steps=40", "evaluate.every_steps=1000"]
    whole = inline.train(tmp_path / "whole", *common)
    inline.train(tmp_path / "part", *common, "budget.env_steps=40")
    resumed = inline.train(tmp_path / "part", *common, resume=True)

    def learned(lines):
        return {line["env_steps"]: line["loss/value"] for line in lines if "loss/value" in line}

    assert learned(whole)[80] == learned(resumed)[80]


BOARD = ["env.name=rigs.games:board", "paradigm=networked", "topology=ring", "algorithm=networked_ac"]
REFUSED = [
    ([*MDP, "topology.mix=all"], ["topology.mix must be critic or none", "got all"]),
    ([*BOARD, "env.kind=box"], ["must be discrete", "box", "algorithm=a2c"]),
    ([*MDP, "algorithm.gru=4"], ["algorithm.gru=4"]),
    ([*MDP, "algorithm.critic=q"], ["algorithm.critic='q'", "action_value, state_value"]),
    ([*MDP, "algorithm.features=all"], ["algorithm.features='all'", "pairs, table, beside"]),
    ([*MDP, "env.agents=20", "algorithm.features=table"], ["algorithm.features=table", "20 agents", "features=pairs"]),
    ([*MDP, "algorithm.critic_hidden=[0]"], ["algorithm.critic_hidden=[0]", "1 or more"]),
    ([*MDP, "algorithm.hidden=[0]"], ["algorithm.hidden=[0]", "linear"]),
    ([*MDP, "algorithm.lr_exponent=0.5"], ["critic_lr_exponent=0.65", "lr_exponent=0.5"]),
    ([*MDP, "algorithm.average_lr=2"], ["algorithm.average_lr=2.0", "at most 1"]),
    ([*MDP, "algorithm.critic_lr=0"], ["algorithm.critic_lr=0.0", "greater than 0"]),
    ([*MDP, "algorithm.steps=3"], ["rollout.fragment=4", "multiple of algorithm.steps=3"]),
    ([*MDP, "rollout.fragment=1"], ["rollout.fragment=1", "next joint action"]),
    ([*MDP, "paradigm=ctde"], ["needs paradigm=networked", "got paradigm=ctde"]),
]


@pytest.mark.parametrize(("overrides", "words"), REFUSED, ids=[" ".join(overrides[-1:]) for overrides, _ in REFUSED])
def test_what_it_cannot_do_is_refused_with_what_would_work(overrides, words):
    config = compose(["rollout.fragment=4", *overrides])
    with pytest.raises(ConfigError) as refused:
        paradigms.plan(config, make_env(config, 1).spec)
    assert [word for word in words if word not in str(refused.value)] == []


def test_agents_that_take_turns_are_refused():
    config = compose(["env=classic/tictactoe", "paradigm=networked", "topology=ring", "algorithm=networked_ac", "groups=shared"])
    with pytest.raises(ConfigError, match="act at once"):
        paradigms.plan(config, make_env(config, 1).spec)
