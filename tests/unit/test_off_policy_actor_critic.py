"""What SAC and MADDPG share: passes, draws that replicas agree on, and what a checkpoint has to hold."""

import pytest
import torch
from rigs.drawn import agent_of, batch_of, build, gradients, interface_of, minibatch_of
from rigs.replicas import Alone, Pair

from marl_hpc.algorithms.maddpg import MADDPG, MADDPGConfig
from marl_hpc.algorithms.off_policy_actor_critic import CRITIC, POLICY
from marl_hpc.algorithms.sac import SAC, SACConfig
from marl_hpc.config import ConfigError

CONFIGS = {SAC: SACConfig, MADDPG: MADDPGConfig}
both = pytest.mark.parametrize("algorithm", CONFIGS, ids=["sac", "maddpg"])
OPTIONS = {"hidden": [8], "batch": 6, "lr": 1e-2, "critic_lr": 1e-2, "target_tau": 0.1}
WORLDS = {
    "discrete and box": (interface_of("discrete", "box", mask=True), {}, {}),
    "several, gru": (interface_of("several", mask=True), {"gru": 4, "chunk": 3, "burn_in": 1}, {"steps": 4, "units": 4}),
    "shared critic": (interface_of("discrete", "several"), {"critic": "shared"}, {}),
}
worlds = pytest.mark.parametrize(("interface", "options", "shape"), WORLDS.values(), ids=WORLDS)


@both
@worlds
def test_each_pass_has_a_gradient_for_its_own_part_only(algorithm, interface, options, shape):
    built = build(algorithm, CONFIGS[algorithm](**OPTIONS, **options), interface)
    batch = batch_of(interface, **shape)
    for place in built.passes:
        gradient = gradients(built, minibatch_of(built, batch, place))[2]
        whole = torch.cat(list(gradient.values()))
        span, _ = built.parts()[place]
        assert whole[span].abs().max() > 1e-4
        whole[span] = 0
        assert whole.abs().max() == 0
    assert all(not p.requires_grad and p.grad is None for p in built.target.following)
    assert all(p.requires_grad for critic in built.critics for p in critic.parameters())


@both
@worlds
def test_what_inactive_agents_see_and_do_counts_nowhere(algorithm, interface, options, shape):
    batch = batch_of(interface, **shape)
    noisy = {name: x.clone() for name, x in batch.items()}
    idle = ~batch["a/active"]
    noisy["a/observation"][idle] += 1
    noisy["a/action"][idle] = (batch["a/action"][idle] == 0).long()
    noisy["a/reward"][idle] -= 7
    results = []
    for given in (batch, noisy):
        built = build(algorithm, CONFIGS[algorithm](**OPTIONS, **options), interface)
        results.append([gradients(built, minibatch_of(built, given, place)) for place in (CRITIC, POLICY)])
    for (loss, sums, gradient), (other_loss, other_sums, other_gradient) in zip(*results, strict=True):
        assert other_loss == pytest.approx(loss, abs=1e-10)
        assert other_sums == pytest.approx(sums, abs=1e-10)
        for name, x in gradient.items():
            torch.testing.assert_close(other_gradient[name], x, rtol=0, atol=1e-10)
    if not options.get("gru"):
        assert results[0][0][1]["count"] == 5 + batch["first"].shape[2] * (len(interface.agents) - 1)


@both
@worlds
def test_training_goes_on_bit_by_bit_from_a_checkpoint(algorithm, interface, options, shape):
    config = CONFIGS[algorithm](**OPTIONS, **options)
    batches = [batch_of(interface, updates=2, seed=seed, **shape) for seed in range(3)]

    def learn(agent, k):
        agent.learn(batches[k], torch.arange(6), total=6, seed=k, env_steps=0)

    agent = agent_of(algorithm, config, interface)
    learn(agent, 0)
    kept = agent.state_copy()
    learn(agent, 1)
    learn(agent, 2)
    other = agent_of(algorithm, config, interface, seed=4)
    other.load_state(kept)
    learn(other, 1)
    learn(other, 2)
    one, two = agent.state(), other.state()
    assert one.keys() == two.keys()
    assert [name for name in one if not torch.equal(one[name], two[name])] == []
    assert not torch.equal(kept["values"], one["values"])
    assert not torch.equal(kept["algorithm.target"], one["algorithm.target"])


@both
@worlds
def test_two_replicas_learn_what_one_learns_and_stay_the_same_bits(algorithm, interface, options, shape):
    config = CONFIGS[algorithm](**OPTIONS, **options)
    batches = [batch_of(interface, updates=2, seed=seed, **shape) for seed in range(2)]

    def train(exchange, place):
        agent = agent_of(algorithm, config, interface, exchange)
        mine = slice(place * 6 // exchange.size, (place + 1) * 6 // exchange.size)
        for k, batch in enumerate(batches):
            own = {name: x[:, :, mine] for name, x in batch.items()}
            metrics = agent.learn(own, torch.arange(6)[mine], total=6, seed=k, env_steps=0)
        return agent.parameters.values.detach(), metrics

    alone, metrics = train(Alone(), 0)
    (first, said), (second, said_too) = Pair().run(train)
    assert torch.equal(first, second)
    assert said == said_too
    torch.testing.assert_close(first, alone, rtol=0, atol=1e-9)
    assert said == pytest.approx(metrics, abs=1e-9)


@both
def test_targets_move_once_for_each_minibatch(algorithm):
    interface = interface_of("discrete", "box")
    agent = agent_of(algorithm, CONFIGS[algorithm](**OPTIONS, target_every=2), interface)
    before = agent.algorithm.target.state()
    agent.learn(batch_of(interface), torch.arange(6), total=6, seed=0, env_steps=0)
    assert torch.equal(agent.algorithm.target.state(), before)
    agent.learn(batch_of(interface), torch.arange(6), total=6, seed=1, env_steps=0)
    followed = torch.cat([p.detach().flatten() for p in agent.algorithm.target.followed])
    torch.testing.assert_close(agent.algorithm.target.state(), before + 0.1 * (followed - before), rtol=0, atol=1e-12)


@both
def test_priorities_are_the_errors_of_the_critics_pass(algorithm):
    interface = interface_of("discrete", "box")
    agent = agent_of(algorithm, CONFIGS[algorithm](**OPTIONS, priority_exponent=0.6), interface)
    agent.learn(batch_of(interface, updates=2), torch.arange(6), total=6, seed=0, env_steps=0)
    assert agent.algorithm.priorities is not None
    assert agent.algorithm.priorities.shape == (2, 6)
    assert (agent.algorithm.priorities > 0).all()


@both
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"critic": "both"}, ["algorithm.critic='both'", "separate or shared"]),
        ({"critic_lr": 0.0}, ["algorithm.critic_lr=0.0", "greater than 0"]),
        ({"gamma": 1.5}, ["algorithm.gamma=1.5", "between 0 and 1"]),
        ({"gru": 4, "n_step": 2, "chunk": 5}, ["algorithm.n_step=2", "algorithm.gru=4", "must be 1"]),
        ({"burn_in": 3}, ["algorithm.burn_in=3", "algorithm.gru=0"]),
        ({"n_step": 20}, ["rollout.fragment=10", "20 steps"]),
        ({"starts": 200_000}, ["algorithm.starts=200000", "algorithm.capacity=100000"]),
        ({"autoregressive": True}, ["algorithm.autoregressive=true", "paradigm=centralized"]),
    ],
)
def test_options_that_cannot_be_are_named_with_what_would_work(algorithm, options, words):
    with pytest.raises(ConfigError) as caught:
        algorithm.check(CONFIGS[algorithm](**options), interface_of("discrete", "box"), 10)
    assert [word for word in words if word not in str(caught.value)] == []


@both
def test_critics_of_a_team_do_not_judge_by_memories_of_what_comes_later(algorithm):
    interface = interface_of("discrete", "box")
    built = build(algorithm, CONFIGS[algorithm](**OPTIONS, gru=4, chunk=4), interface)
    batch = {name: x[:, 0] for name, x in batch_of(interface, steps=4).items()}
    batch["first"][2] = True
    critic, taken = built.critics[0], built.taken(batch)
    before, after = critic.memories(batch, taken)
    assert before[0].abs().max() == before[2].abs().max() == 0
    assert torch.equal(before[1], after[0])
    assert torch.equal(before[3], after[2])
    later = {name: x.clone() for name, x in taken.items()}
    later["a"][1] = 1 - later["a"][1]
    changed = critic.memories(batch, later)[1]
    assert (changed != after).flatten(1).any(1).tolist() == [False, True, False, False]
