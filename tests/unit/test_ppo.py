"""PPO against its definition written out, alone and as two replicas."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from rigs.replicas import Alone, Pair

from marl_hpc.agents import IndependentAgent
from marl_hpc.agents.interface import describe_non_finite
from marl_hpc.algorithms.ppo import PPO, SUMS, PPOConfig
from marl_hpc.config import ConfigError
from marl_hpc.distributions import draw_noise
from marl_hpc.keyed_random import generator
from marl_hpc.types import ActionSpace, GroupSpec, InterfaceSpec

CONFIG = PPOConfig(hidden=[8, 8], epochs=3, minibatches=4)
DISCRETE = ActionSpace(kind="discrete", n=4)
BOX = ActionSpace(kind="box", shape=(2,))
T, B, N, D = 6, 4, 2, 3


def group_of(space=DISCRETE, mask=False, agents=N):
    return GroupSpec(
        name="shared",
        agents=tuple(f"agent_{i}" for i in range(agents)),
        observation_shape=(D,),
        action_space=space,
        action_mask=mask,
    )


def interface_of(space=DISCRETE, mask=False):
    return InterfaceSpec(name="shared", paradigm="independent", groups=(group_of(space, mask),))


def build(config=CONFIG, space=DISCRETE, mask=False, dtype=torch.float64, exchange=None, seed=0):
    return PPO(config, interface_of(space, mask), exchange or Alone(), device="cpu", dtype=dtype, seed=seed)


def agent_of(config=CONFIG, exchange=None, seed=0):
    device = torch.device("cpu")
    return IndependentAgent(PPO, config, interface_of(), exchange or Alone(), device=device, dtype=torch.float64, seed=seed)


def collect(ppo, space=DISCRETE, mask=False, dtype=torch.float64, steps=T, copies=B, seed=0):
    """A batch as rollout workers record it: acted step by step, next observations those of the same episode; copy 0 has an agent that
    terminates with step 2, copy 1 is truncated at step 3."""
    random = np.random.default_rng(seed)

    def numbers(*shape):
        return torch.from_numpy(random.normal(size=shape)).to(dtype)

    batch = {"observation": numbers(steps, copies, N, D), "reward": numbers(steps, copies, N)}
    flags = {name: torch.zeros(steps, copies, N, dtype=torch.bool) for name in ("terminated", "truncated")}
    batch |= {**flags, "active": torch.ones(steps, copies, N, dtype=torch.bool)}
    batch["next_observation"] = torch.cat([batch["observation"][1:], numbers(1, copies, N, D)])
    batch["terminated"][2, 0, 0] = True
    batch["active"][3:, 0, 0] = False
    batch["next_observation"][2, 0, 0] = numbers(D)
    first = torch.zeros(steps, copies, dtype=torch.bool)
    first[0] = True
    batch["next_active"] = torch.cat([batch["active"][1:], batch["active"][-1:]])
    if copies > 1:
        batch["truncated"][3, 1, :] = True
        batch["next_observation"][3, 1] = numbers(N, D)
        batch["next_active"][3, 1] = False
        first[4, 1] = True
    if mask:
        batch["action_mask"] = torch.from_numpy(random.random((steps, copies, N, space.n)) < 0.5)
        batch["action_mask"][..., 1] = True
    actions, log_probs = [], []
    policy = ppo.policies["shared"]
    with torch.no_grad():
        for t in range(steps):
            seen = {name: batch[name][t] for name in ("observation", "active", "action_mask") if name in batch}
            noise = torch.from_numpy(draw_noise(space, random, (copies, N))).to(dtype)
            action, log_prob, _ = policy.act({"shared": seen}, torch.zeros(copies, N, 0, dtype=dtype), {"shared": noise})
            actions.append(action["shared"])
            log_probs.append(log_prob["shared"])
    batch |= {"action": torch.stack(actions), "log_prob": torch.stack(log_probs)}
    return {**{f"shared/{name}": x for name, x in batch.items()}, "first": first}


def field(batch, name):
    return batch[f"shared/{name}"].numpy()


def values_of(ppo, observation):
    """The critic's word [..., N], in reward units."""
    with torch.no_grad():
        return ppo.values.denormalize(ppo.critic.networks[0](observation).squeeze(-1)).numpy()


def part_of(batch, columns):
    return {name: x[:, columns] for name, x in batch.items()}


def expected_advantages(ppo, batch, config):
    """The sum of the definition, every next value from the critic on the observation that the action led to."""
    values, following = values_of(ppo, batch["shared/observation"]), values_of(ppo, batch["shared/next_observation"])
    reward, terminated = field(batch, "reward"), field(batch, "terminated")
    done = terminated | field(batch, "truncated")
    advantages = np.zeros_like(reward)
    for t, b, n in np.ndindex(reward.shape):
        for later in range(t, len(reward)):
            bootstrap = 0.0 if terminated[later, b, n] else following[later, b, n]
            delta = reward[later, b, n] + config.gamma * bootstrap - values[later, b, n]
            advantages[t, b, n] += (config.gamma * config.gae_lambda) ** (later - t) * delta
            if done[later, b, n]:
                break
    return advantages, values


def test_advantages_are_the_definition_with_final_observations_as_bootstraps():
    config = replace(CONFIG, normalize_advantages=False, normalize_values=False)
    ppo = build(config)
    batch = collect(ppo)
    advantages, values = expected_advantages(ppo, batch, config)
    result, live = ppo.with_advantages(batch), field(batch, "active")
    np.testing.assert_allclose(result["advantage"].numpy()[live], advantages[live], atol=1e-12)
    np.testing.assert_allclose(result["target"].numpy()[live], (advantages + values)[live], atol=1e-12)
    np.testing.assert_allclose(result["old_value"].numpy(), values, atol=1e-12)


def test_advantages_by_hand_with_a_termination_and_a_truncation():
    """The critic says 2 everywhere, reward 1, γ = 0.5, λ = 1. A plain step has δ = 1 + 1 - 2 = 0, and so has a truncated one; a
    terminated one -1, which the steps before it see halved each."""
    config = replace(CONFIG, gamma=0.5, gae_lambda=1.0, normalize_advantages=False, normalize_values=False)
    ppo = build(config)
    with torch.no_grad():
        for parameter in ppo.critic.parameters():
            parameter.zero_()
        list(ppo.critic.parameters())[-1].fill_(2.0)
    batch = collect(ppo)
    batch["shared/reward"] = torch.ones_like(batch["shared/reward"])
    advantage = ppo.with_advantages(batch)["advantage"]
    assert advantage[:3, 0, 0].tolist() == [-0.25, -0.5, -1.0]
    assert advantage[:, 0, 1].tolist() == [0.0] * T
    assert advantage[:, 1].abs().max() == 0


def test_normalized_advantages_have_mean_zero_and_deviation_one_over_active_agents():
    ppo = build()
    batch = collect(ppo)
    expected, _ = expected_advantages(ppo, batch, CONFIG)
    live = field(batch, "active")
    expected = (expected[live] - expected[live].mean()) / expected[live].std()
    np.testing.assert_allclose(ppo.with_advantages(batch)["advantage"].numpy()[live], expected, atol=1e-7)


def test_normalized_targets_have_mean_zero_and_deviation_one_after_the_first_batch():
    ppo = build()
    batch = collect(ppo)
    advantages, values = expected_advantages(ppo, batch, CONFIG)
    live = field(batch, "active")
    returns = (advantages + values)[live]
    target = ppo.with_advantages(batch)["target"].numpy()[live]
    np.testing.assert_allclose(target, (returns - returns.mean()) / returns.std(), atol=1e-10)


def test_values_are_back_in_reward_units_once_statistics_are_known():
    ppo = build()
    batch = collect(ppo)
    ppo.with_advantages({**batch, "shared/reward": batch["shared/reward"] * 30 - 50})
    again = collect(ppo, seed=1)
    expected, _ = expected_advantages(ppo, again, CONFIG)
    live = field(again, "active")
    expected = (expected[live] - expected[live].mean()) / expected[live].std()
    np.testing.assert_allclose(ppo.with_advantages(again)["advantage"].numpy()[live], expected, atol=1e-7)


def learn_one(ppo, batch):
    """(loss, sums, gradient) of the whole batch as one minibatch."""
    ppo.parameters.message.zero_()
    loss, sums = ppo.loss(ppo.samples(ppo.with_advantages(batch)))
    loss.backward()
    return loss.item(), {name: float(x) for name, x in sums.items()}, ppo.parameters.values.grad.clone()


@pytest.mark.parametrize("space", [DISCRETE, BOX])
def test_inactive_agents_count_in_no_mean(space):
    changed = [f"shared/{name}" for name in ("observation", "next_observation", "reward", "log_prob", "action")]
    ppo, other = build(space=space), build(space=space)
    batch = collect(ppo, space)
    dead = ~batch["shared/active"]
    assert dead.any()
    noisy = dict(batch)
    random = torch.Generator().manual_seed(5)
    for name in changed:
        noisy[name] = batch[name].clone()
        shape = noisy[name][dead].shape
        noisy[name][dead] = (
            torch.randint(0, 4, shape, generator=random)
            if noisy[name].dtype == torch.int64
            else torch.randn(shape, generator=random, dtype=torch.float64)
        )
        assert not torch.equal(noisy[name], batch[name])
    loss, sums, gradient = learn_one(ppo, batch)
    noisy_loss, noisy_sums, noisy_gradient = learn_one(other, noisy)
    assert noisy_loss == pytest.approx(loss, abs=1e-12)
    assert noisy_sums == pytest.approx(sums, abs=1e-12)
    assert sums["count"] == int(batch["shared/active"].sum())
    torch.testing.assert_close(noisy_gradient, gradient, rtol=0, atol=1e-12)
    assert gradient.abs().max() > 1e-3
    assert torch.equal(other.values.moments, ppo.values.moments)


def test_batch_without_a_living_agent_gives_a_gradient_of_zero():
    ppo = build()
    batch = collect(ppo)
    for name in ("shared/active", "shared/next_active"):
        batch[name] = torch.zeros_like(batch[name])
    loss, sums, gradient = learn_one(ppo, batch)
    assert loss == 0
    assert sums["count"] == 0
    assert gradient.abs().max() == 0


@pytest.mark.parametrize(("space", "mask"), [(DISCRETE, False), (DISCRETE, True), (BOX, False)])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-6), (torch.float64, 1e-14)])
def test_first_ratio_is_one_for_fresh_log_probabilities(space, mask, dtype, bound):
    ppo = build(space=space, mask=mask, dtype=dtype)
    batch = collect(ppo, space, mask, dtype)
    first = next(ppo.minibatches(batch, torch.arange(B), B, 3, 0))
    _, sums = ppo.loss(first)
    assert sums["ratio_deviation"].item() <= bound
    # where the recording call has the learner's shape, not even rounding differs
    with torch.no_grad():
        first["log_prob"] = first["proximal_log_prob"] = ppo.act(first)[0]
    _, sums = ppo.loss(first)
    assert sums["ratio_deviation"].item() == 0
    assert sums["kl"].item() == 0
    assert sums["clipped"].item() == 0


def numpy_network(module, observation):
    """The network with tanh layers and the agents' one-hot, by NumPy."""
    x = np.concatenate([observation, np.broadcast_to(np.eye(N), (*observation.shape[:-1], N))], -1)
    weights = [parameter.detach().numpy() for parameter in module.body.parameters()]
    for i in range(0, len(weights), 2):
        x = x @ weights[i].T + weights[i + 1]
        x = np.tanh(x) if i < len(weights) - 2 else x
    return x


@pytest.mark.parametrize(
    ("stale", "correction", "bound"),
    [
        (False, {"max_weight": 1.5}, 1.5),
        (True, {"max_weight": 1.5}, 1.5),
        (True, {"correction": "vtrace", "rho_bar": 1.3}, 1.3),
        (True, {"correction": "none"}, None),
    ],
)
@pytest.mark.parametrize("value_clip", [0.2, None])
def test_loss_is_the_papers_clipped_surrogate(value_clip, stale, correction, bound):
    """Schulman et al. 2017 where the policy that acted is the one that learning starts from, Hilton et al. 2022 where it isn't."""
    config = replace(CONFIG, value_clip=value_clip, clip=0.1, entropy=0.03, value_weight=0.7, **correction)
    ppo = build(config)
    collected = collect(ppo)
    acted = "shared/log_prob"
    proximal = collected[acted].flatten(0, 1).numpy()
    if stale:
        collected[acted] = collected[acted] + 0.6 * torch.randn(
            collected[acted].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2)
        )
    batch = ppo.samples(ppo.with_advantages(collected))
    with torch.no_grad():  # a policy that has moved away from the one that acted, so that clipping matters
        for parameter in [*ppo.policies["shared"].parameters(), *ppo.critic.parameters()]:
            parameter += 0.3 * torch.randn(parameter.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    loss, sums = ppo.loss(batch)

    data = {name.removeprefix("shared/"): x[0].numpy() for name, x in batch.items() if name != acted}
    logits = numpy_network(ppo.policies["shared"].network, data["observation"])
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    value = numpy_network(ppo.critic.networks[0], data["observation"])[..., 0]
    expected = dict.fromkeys(SUMS, 0.0)
    total, truncated = 0.0, 0
    for i, n in np.ndindex(data["reward"].shape):
        if not data["active"][i, n]:
            continue
        now, acted = log_probs[i, n, data["action"][i, n]], data["log_prob"][i, n]
        log_ratio = now - proximal[i, n]
        ratio, advantage = np.exp(log_ratio), data["advantage"][i, n]
        weight = 1.0 if bound is None else np.exp(proximal[i, n] - acted)
        over = bound is not None and weight > bound
        weight = bound if over else weight
        truncated += over
        policy = -weight * min(ratio * advantage, min(max(ratio, 0.9), 1.1) * advantage)
        entropy = -sum(p * np.log(p) for p in np.exp(log_probs[i, n]))
        old, target = data["old_value"][i, n], data["target"][i, n]
        error = (value[i, n] - target) ** 2
        if value_clip is not None:
            error = max(error, (min(max(value[i, n], old - value_clip), old + value_clip) - target) ** 2)
        total += policy - 0.03 * entropy + 0.7 * error
        for name, x in (
            ("count", 1), ("policy", policy), ("value", error), ("entropy", entropy), ("kl", ratio - 1 - log_ratio),
            ("clipped", abs(ratio - 1) > 0.1), ("importance_weight", weight), ("truncated_weights", over),
        ):  # fmt: skip
            expected[name] += x
        expected["ratio_deviation"] = max(expected["ratio_deviation"], abs(np.exp(now - acted) - 1))
    assert (truncated > 0) == (stale and bound is not None)
    assert 0 < expected["clipped"] < expected["count"]
    assert loss.item() == pytest.approx(total, rel=1e-12)
    assert {name: float(x) for name, x in sums.items()} == pytest.approx(expected, rel=1e-12)


def test_value_clip_leaves_the_first_minibatch_alone():
    """The critic hasn't moved since it was asked for the old values, so clipping its movement changes nothing; not in the first batch
    either, whose returns are far from the untrained critic's units (the value clip of Yu et al. 2022 is around the critic's output)."""
    clipped, free = build(replace(CONFIG, value_clip=0.2)), build(replace(CONFIG, value_clip=None))
    batch = collect(clipped)
    batch["shared/reward"] = batch["shared/reward"] * 5 - 20
    _, sums, gradient = learn_one(clipped, batch)
    _, free_sums, free_gradient = learn_one(free, batch)
    assert sums["value"] == pytest.approx(free_sums["value"], rel=1e-9)
    torch.testing.assert_close(gradient, free_gradient)


def test_every_sample_is_in_one_minibatch_of_an_epoch():
    ppo = build()
    batch = collect(ppo)
    batch["tag"] = torch.arange(T * B).reshape(T, B, 1).expand(T, B, N)
    parts = list(ppo.minibatches(batch, torch.arange(B), B, 1, 0))
    assert len(parts) == CONFIG.epochs * CONFIG.minibatches
    orders = []
    for epoch in range(CONFIG.epochs):
        tags = [part["tag"][0, :, 0].tolist() for part in parts[epoch * CONFIG.minibatches : (epoch + 1) * CONFIG.minibatches]]
        assert [len(tag) for tag in tags] == [6, 6, 6, 6]
        orders.append([sample for tag in tags for sample in tag])
        assert sorted(orders[-1]) == list(range(T * B))
    assert orders[0] != orders[1]


SPLITS = [([0, 1], [2, 3]), ([0, 2, 3], [1]), ([3, 0], [2, 1]), ([0, 1, 2, 3], [])]


@pytest.mark.parametrize("split", SPLITS)
def test_minibatches_of_two_replicas_are_together_the_global_ones(split):
    whole = build()
    batch = collect(whole)
    batch["tag"] = torch.arange(T * B).reshape(T, B, 1).expand(T, B, N)
    expected = list(whole.minibatches(batch, torch.arange(B), B, 7, 0))

    def task(exchange, place):
        ppo = build(exchange=exchange)
        return list(ppo.minibatches(part_of(batch, split[place]), torch.tensor(split[place], dtype=torch.int64), B, 7, 0))

    parts = Pair().run(task)
    assert len(parts[0]) == len(parts[1]) == len(expected)
    for one, other, together in zip(*parts, expected, strict=True):
        tags = torch.cat([one["tag"], other["tag"]], 1)[0, :, 0]
        assert sorted(tags.tolist()) == sorted(together["tag"][0, :, 0].tolist())
        order, sought = tags.argsort(), together["tag"][0, :, 0].argsort()
        for name in ("advantage", "target", "old_value", "shared/action", "shared/observation"):
            joined = torch.cat([one[name], other[name]], 1)[:, order]
            torch.testing.assert_close(joined, together[name][:, sought], rtol=0, atol=1e-11)


@pytest.mark.parametrize(("space", "mask"), [(DISCRETE, True), (BOX, False)])
@pytest.mark.parametrize("split", SPLITS)
def test_gradients_of_two_replicas_sum_to_one_replicas(space, mask, split):
    batch = collect(build(space=space, mask=mask), space, mask)

    def gradients(ppo, part, columns):
        result = []
        for minibatch in ppo.minibatches(part, columns, B, 2, 0):
            ppo.parameters.message.zero_()
            loss, sums = ppo.loss(minibatch)
            loss.backward()
            ppo.parameters.sums.copy_(torch.stack([sums[name] for name in SUMS]))
            ppo.exchange.sum_(ppo.parameters.message)
            result.append(ppo.parameters.message.clone())
        return torch.stack(result)

    alone = gradients(build(space=space, mask=mask), batch, torch.arange(B))

    def task(exchange, place):
        columns = torch.tensor(split[place], dtype=torch.int64)
        return gradients(build(space=space, mask=mask, exchange=exchange), part_of(batch, split[place]), columns)

    first, second = Pair().run(task)
    assert torch.equal(first, second)
    # all but the largest deviation of a ratio, which isn't a sum
    torch.testing.assert_close(first[:, :-1], alone[:, :-1], rtol=0, atol=1e-12)
    assert alone.abs().max() > 1e-3


def test_two_replicas_learn_the_parameters_of_one():
    batch = collect(build())

    def train(exchange, columns):
        agent = agent_of(replace(CONFIG, lr=1e-3), exchange)
        start = agent.parameters.values.detach().clone()
        metrics = agent.learn(part_of(batch, columns), torch.tensor(columns), total=B, seed=4, env_steps=0)
        return agent.parameters.values.detach(), start, metrics

    alone, start, metrics = train(Alone(), [0, 1, 2, 3])
    (first, _, first_metrics), (second, _, _) = Pair().run(lambda exchange, place: train(exchange, [[0, 3], [1, 2]][place]))
    assert torch.equal(first, second)
    assert (alone - start).abs().max() > 1e-3
    torch.testing.assert_close(first, alone, rtol=0, atol=1e-9)
    for name in ("loss/policy", "loss/value", "loss/entropy", "loss/kl", "loss/clipped"):
        assert first_metrics[name] == pytest.approx(metrics[name], abs=1e-9)


def test_gradient_is_clipped_after_the_mean_over_samples():
    agents = []
    for limit in (1e9, 1e-3):
        config = replace(CONFIG, max_grad_norm=limit)
        agent = agent_of(config)
        minibatch = next(agent.algorithm.minibatches(collect(agent.algorithm), torch.arange(B), B, 0, 0))
        _, sums = agent.algorithm.loss(minibatch)
        agent.gradient_step(minibatch)
        agents.append((agent.parameters.values.grad.clone(), sums["count"].item()))
    (free, count), (clipped, _) = agents
    reference = build()
    minibatch = next(reference.minibatches(collect(reference), torch.arange(B), B, 0, 0))
    reference.parameters.message.zero_()
    reference.loss(minibatch)[0].backward()
    torch.testing.assert_close(free, reference.parameters.values.grad / count, rtol=1e-12, atol=0)
    assert clipped.norm().item() == pytest.approx(1e-3, rel=1e-2)
    torch.testing.assert_close(clipped / clipped.norm(), free / free.norm())


def test_reward_that_is_not_finite_is_named():
    agent = agent_of()
    batch = collect(agent.algorithm)
    assert describe_non_finite(batch, agent.interface) == ""
    batch["shared/reward"][0, 0, 1] = float("nan")
    who = agent.interface.groups[0].agents[1]
    assert describe_non_finite(batch, agent.interface) == f"NaN or infinity in reward of {who}"
    with pytest.raises(FloatingPointError, match="gradient of 'shared' is nan at gradient step 0"):
        agent.learn(batch, torch.arange(B), total=B, seed=0, env_steps=0)


def test_state_of_an_agent_goes_on_where_it_was():
    def fresh(seed):
        return agent_of(seed=seed)

    agent, other = fresh(0), fresh(1)
    batch = collect(agent.algorithm)
    agent.learn(batch, torch.arange(B), total=B, seed=0, env_steps=0)
    other.load_state({name: x.clone() for name, x in agent.state().items()})
    assert other.updates == agent.updates == CONFIG.epochs * CONFIG.minibatches
    for one in (agent, other):
        one.learn(batch, torch.arange(B), total=B, seed=1, env_steps=0)
    assert torch.equal(agent.parameters.values, other.parameters.values)
    assert torch.equal(agent.algorithm.values.moments, other.algorithm.values.moments)


def test_state_of_another_network_is_refused():
    small = agent_of(replace(CONFIG, hidden=[4]))
    agent = agent_of()
    with pytest.raises(ValueError, match=f"'shared' has {len(small.parameters.values)} parameters"):
        agent.load_state(small.state())


def test_minibatch_order_comes_from_the_seed_alone():
    ppo = build()
    batch = collect(ppo)
    batch["tag"] = torch.arange(T * B).reshape(T, B, 1).expand(T, B, N)
    orders = [
        [part["tag"][0, :, 0].tolist() for part in build().minibatches(batch, torch.arange(B), B, seed, 0)] for seed in (1, 1, 2)
    ]
    assert orders[0] == orders[1] != orders[2]
    assert float(generator(1).random()) != float(generator(2).random())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"activation": "tahn"}, ["algorithm.activation='tahn'", "tanh, relu, elu"]),
        ({"epochs": 0}, ["algorithm.epochs=0", "greater than 0"]),
        ({"minibatches": -1}, ["algorithm.minibatches=-1"]),
        ({"lr": 0.0}, ["algorithm.lr=0.0"]),
        ({"lr": float("nan")}, ["algorithm.lr=nan"]),
        ({"clip": -0.2}, ["algorithm.clip=-0.2"]),
    ],
)
def test_check_names_the_key_and_what_would_work(change, words):
    PPO.check(CONFIG, interface_of(), 100)
    with pytest.raises(ConfigError) as caught:
        PPO.check(replace(CONFIG, **change), interface_of(), 100)
    assert all(word in str(caught.value) for word in words)
