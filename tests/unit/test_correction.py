"""What on-policy algorithms do about data of an older policy: whose ratio counts, what it bounds, and what metrics tell of it."""

import math
from dataclasses import replace
from itertools import product

import pytest
import torch
from rigs.batches import batch_of
from rigs.replicas import Alone

from marl_hpc.agents import IndependentAgent, TeamAgent
from marl_hpc.algorithms.a2c import A2C, A2CConfig
from marl_hpc.algorithms.coma import COMA, COMAConfig
from marl_hpc.algorithms.happo import HAPPO
from marl_hpc.algorithms.ppo import PPO, PPOConfig
from marl_hpc.config import ConfigError
from marl_hpc.returns import gae, vtrace
from marl_hpc.types import ActionSpace, GroupSpec, InterfaceSpec

T, B = 8, 6
CHOICES, BOX = ActionSpace(kind="discrete", n=4), ActionSpace(kind="box", shape=(2,))


def group(name, agents, space, mask=False):
    return GroupSpec(name=name, agents=agents, observation_shape=(3,), action_space=space, action_mask=mask)


PAIR, ONE = group("g", ("g0", "g1"), CHOICES, mask=True), group("h", ("h0",), BOX)
TEAM = {"groups": (PAIR, ONE), "team_reward": "mean"}
INTERFACES = {
    "independent": InterfaceSpec(name="g", paradigm="independent", groups=(PAIR,)),
    "ctde": InterfaceSpec(name="t", paradigm="ctde", **TEAM, critic_sees="state", state_size=4),
    "ctde, shared critic": InterfaceSpec(name="t", paradigm="ctde", **TEAM, critic_sees="state", state_size=4),
    "centralized": InterfaceSpec(name="t", paradigm="centralized", **TEAM, critic_sees="joint", joint_policy=True),
}
INTERFACES["separate groups"] = replace(INTERFACES["ctde"], groups=(group("g", ("g0",), CHOICES), ONE))
INTERFACES["choices"] = replace(INTERFACES["ctde"], groups=(PAIR,))
CORRECTIONS = {
    "none": {"correction": "none"},
    "truncated": {"correction": "truncated", "max_weight": 1.3},
    "vtrace": {"correction": "vtrace", "rho_bar": 1.2, "c_bar": 0.9},
}
PLAIN = {"hidden": [8], "normalize_values": False, "gamma": 0.9}


def agent_of(paradigm="independent", algorithm=A2C, dtype=torch.float64, **options):
    interface = INTERFACES[paradigm]
    shared = {"critic": "shared"} if "shared" in paradigm else {}
    config = algorithm.Config(**{**PLAIN, **shared, **options})
    algorithm.check(config, interface, T)
    kind = IndependentAgent if paradigm == "independent" else TeamAgent
    agent = kind(algorithm, config, interface, Alone(), device=torch.device("cpu"), dtype=dtype, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        agent.parameters.values += 0.3 * torch.randn(agent.parameters.values.shape, dtype=dtype, generator=generator)
    return agent


def stale_batch(agent, lag=0.5, ends=0.2, dtype=torch.float64):
    """(batch, differences [T, B, N] of log-probabilities): of each agent's action the present policy's less that of one that acted; a
    joint policy's members share in its own alike, before they differ."""
    interface, algorithm = agent.interface, agent.algorithm
    batch = agent.rewarded(batch_of(interface, T, B, ends=ends, dtype=dtype))
    active = algorithm.together(batch, "active")
    noise = torch.randn(active.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(dtype)
    with torch.no_grad():
        now = algorithm.act(algorithm.at_start(batch))[0]
    if interface.joint_policy:
        now = now / active.sum(-1, True).clamp_min(1)
    acted = (now - lag * noise).split([len(g.agents) for g in interface.groups], -1)
    return {**batch, **{f"{g.name}/log_prob": x for g, x in zip(interface.groups, acted, strict=True)}}, lag * noise


def estimates(agent, batch, ratios=None):
    """`vtrace` with the agent's bounds, or `gae` without ratios: (targets, advantages, known). For a team of one policy everybody lives."""
    algorithm, config = agent.algorithm, agent.algorithm.config
    columns = slice(0, 1) if agent.interface.joint_policy else slice(None)
    reward, terminated, truncated, active, after = (
        algorithm.together(batch, name)[..., columns] for name in ("reward", "terminated", "truncated", "active", "next_active")
    )
    with torch.no_grad():
        values, memory, _ = algorithm.evaluate(batch)
        arguments = (reward, values, algorithm.critic.after(batch, memory), terminated, terminated | truncated)
    options = {"gamma": config.gamma, "lam": config.gae_lambda, "active": active, "continues": after[-1]}
    if ratios is None:
        advantages, known = gae(*arguments, **options)
        return advantages + values, advantages, known
    return vtrace(*arguments, ratios, rho_bar=config.rho_bar, c_bar=config.c_bar, **options)


@pytest.mark.parametrize("lam", [0.8, 1.0])
@pytest.mark.parametrize("paradigm", ["independent", "ctde", "ctde, shared critic"])
def test_vtrace_takes_each_agents_own_ratio(paradigm, lam):
    agent = agent_of(paradigm, **CORRECTIONS["vtrace"], gae_lambda=lam)
    batch, differences = stale_batch(agent)
    result = agent.algorithm.with_advantages(batch)
    targets, advantages, known = estimates(agent, batch, differences.exp())
    assert torch.equal(result["known"], known)
    torch.testing.assert_close(result["target"][known], targets[known], rtol=0, atol=1e-12)
    torch.testing.assert_close(result["advantage"][known], advantages[known], rtol=0, atol=1e-12)
    assert (targets - estimates(agent, batch)[0])[known].abs().max() > 0.1
    weight = agent.algorithm.weigh(result, known.double())[1]
    torch.testing.assert_close(weight[known], differences.exp().clamp(max=1.2)[known], rtol=1e-12, atol=0)


@pytest.mark.parametrize("algorithm", [A2C, PPO])
def test_ratio_of_a_joint_policy_is_the_product_bounded_as_a_whole(algorithm):
    agent = agent_of("centralized", algorithm, **CORRECTIONS["vtrace"], normalize_advantages=False)
    batch, differences = stale_batch(agent, ends=0.0)
    result = agent.algorithm.with_advantages(batch)
    product = differences.exp().prod(-1, keepdim=True)
    targets, advantages, known = estimates(agent, batch, product)
    assert known.all()
    torch.testing.assert_close(result["target"], targets, rtol=0, atol=1e-12)
    torch.testing.assert_close(result["advantage"], advantages, rtol=0, atol=1e-12)
    weight = agent.algorithm.weigh(result, known.double())[1]
    torch.testing.assert_close(weight, product.clamp(max=1.2), rtol=1e-12, atol=0)
    before = differences.exp().clamp(max=1.2).prod(-1, keepdim=True)  # bounded one by one
    assert (weight - before).abs().max() > 0.2


def test_only_members_that_act_are_in_the_product():
    agent = agent_of("centralized", **CORRECTIONS["vtrace"])
    batch, differences = stale_batch(agent, ends=0.3)
    active = agent.algorithm.together(batch, "active")
    assert (active.any(-1) & ~active.all(-1)).any()
    result = agent.algorithm.with_advantages(batch)
    known = result["known"]
    ratio = agent.algorithm.weigh(result, known.double())[0]
    torch.testing.assert_close(ratio[known], (differences * active).sum(-1, True).exp()[known], rtol=1e-12, atol=0)


@pytest.mark.parametrize("algorithm", [A2C, PPO])
@pytest.mark.parametrize("paradigm", INTERFACES)
def test_without_lag_no_correction_changes_anything(paradigm, algorithm):
    results = []
    for correction in CORRECTIONS:
        agent = agent_of(paradigm, algorithm, correction=correction)
        batch, _ = stale_batch(agent, lag=0.0)
        metrics = agent.learn(batch, torch.arange(B), total=B, seed=0, env_steps=0)
        assert metrics["loss/first_ratio_deviation"] < 1e-12
        assert metrics["loss/importance_weight"] == pytest.approx(1, abs=1e-12)
        assert metrics["loss/truncated_weights"] == 0
        results.append(agent.parameters.values.detach())
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=0, atol=1e-9)


def test_advantages_are_normalized_before_they_are_weighed():
    """The mean of what weighs less is no baseline: subtracted from ρ A it would push even samples that weigh nothing."""
    agent = agent_of(algorithm=PPO, **CORRECTIONS["vtrace"], normalize_advantages=True)
    batch, differences = stale_batch(agent)
    result = agent.algorithm.with_advantages(batch)
    _, advantages, known = estimates(agent, batch, differences.exp())
    expected = advantages[known]
    expected = (expected - expected.mean()) / expected.std(correction=0)
    torch.testing.assert_close(result["advantage"][known], expected, rtol=0, atol=1e-6)
    loss, _ = agent.algorithm.surrogate(result, result["proximal_log_prob"], known.double())
    torch.testing.assert_close(-loss[known], (differences.exp().clamp(max=1.2)[known] * expected), rtol=0, atol=1e-6)


@pytest.mark.parametrize("correction", CORRECTIONS)
@pytest.mark.parametrize("paradigm", INTERFACES)
def test_log_probabilities_of_who_does_not_act_count_nowhere(paradigm, correction):
    learned = []
    for wild in (None, 1e4, -1e4):
        agent = agent_of(paradigm, PPO, **CORRECTIONS[correction], epochs=2)
        batch, _ = stale_batch(agent)
        for g in agent.interface.groups if wild is not None else ():
            batch[f"{g.name}/log_prob"] = batch[f"{g.name}/log_prob"].masked_fill(~batch[f"{g.name}/active"], wild)
        metrics = agent.learn(batch, torch.arange(B), total=B, seed=0, env_steps=0)
        assert all(math.isfinite(x) for x in metrics.values())
        learned.append(agent.parameters.values.detach())
    assert torch.equal(learned[0], learned[1])
    assert torch.equal(learned[0], learned[2])


METRICS = {
    A2C: ("independent", {}), PPO: ("centralized", {"epochs": 3, "minibatches": 2}), HAPPO: ("separate groups", {"epochs": 2}),
    COMA: ("choices", {"epsilon_start": 0.3, "critic_steps": 2}),
}  # fmt: skip


@pytest.mark.parametrize(("algorithm", "correction"), [x for x in product(METRICS, CORRECTIONS) if x != (COMA, "vtrace")])
def test_metrics_tell_the_mean_weight_and_how_many_were_truncated(algorithm, correction):
    paradigm, options = METRICS[algorithm]
    agent = agent_of(paradigm, algorithm, **CORRECTIONS[correction], **options)
    for policy in agent.algorithm.policies.values():
        policy.epsilon = options.get("epsilon_start", 0.0)
    ends = 0.0 if agent.interface.joint_policy else 0.2
    batch, differences = stale_batch(agent, ends=ends)
    known = agent.algorithm.together(batch, "active")
    ratio = differences.sum(-1, True).exp()[..., :1] if agent.interface.joint_policy else differences.exp()[known]
    bound = {"none": None, "truncated": 1.3, "vtrace": 1.2}[correction]
    metrics = agent.learn(batch, torch.arange(B), total=B, seed=0, env_steps=0)
    weight = torch.ones_like(ratio) if bound is None else ratio.clamp(max=bound)
    truncated = 0.0 if bound is None else (ratio > bound).double().mean().item()
    assert metrics["loss/importance_weight"] == pytest.approx(weight.mean().item(), rel=1e-9)
    assert metrics["loss/truncated_weights"] == pytest.approx(truncated, abs=1e-12)
    assert (0.1 < truncated < 0.9) == (bound is not None)
    assert metrics["loss/first_ratio_deviation"] > 0.1


def test_rounding_is_no_truncation():
    """Half of the ratios of a policy with itself are a little more than 1, the bound."""
    agent = agent_of(dtype=torch.float32, correction="vtrace")
    batch, _ = stale_batch(agent, lag=1e-6, dtype=torch.float32)
    metrics = agent.learn(batch, torch.arange(B), total=B, seed=0, env_steps=0)
    assert 0 < metrics["loss/first_ratio_deviation"] < 1e-4
    assert metrics["loss/truncated_weights"] == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"correction": "vtrase"}, ["algorithm.correction='vtrase'", "none, truncated, vtrace"]),
        ({"correction": "vtrace", "rho_bar": 0.0}, ["algorithm.rho_bar=0.0", "greater than 0"]),
        ({"correction": "vtrace", "rho_bar": float("nan")}, ["algorithm.rho_bar=nan", "greater than 0"]),
        ({"correction": "vtrace", "c_bar": -1.0}, ["algorithm.c_bar=-1.0", "greater than 0"]),
        ({"correction": "vtrace", "c_bar": 1.5}, ["algorithm.c_bar=1.5", "algorithm.rho_bar=1.0", "lower c_bar or raise rho_bar"]),
        ({"rho_bar": 2.0}, ["algorithm.rho_bar=2.0", "algorithm.correction=truncated", "set algorithm.correction=vtrace"]),
        ({"c_bar": 0.5}, ["algorithm.c_bar=0.5", "algorithm.correction=truncated", "leave c_bar out"]),
        ({"correction": "none", "rho_bar": 2.0}, ["algorithm.rho_bar=2.0", "algorithm.correction=none"]),
        ({"correction": "none", "max_weight": 3.0}, ["algorithm.max_weight=3.0", "set algorithm.correction=truncated"]),
        ({"correction": "vtrace", "max_weight": 3.0}, ["algorithm.max_weight=3.0", "algorithm.correction=vtrace"]),
        ({"max_weight": 0.0}, ["algorithm.max_weight=0.0", "greater than 0"]),
    ],
)
@pytest.mark.parametrize("algorithm", [A2C, PPO, HAPPO, COMA])
def test_options_that_do_not_fit_are_refused(algorithm, change, words):
    interface = INTERFACES[METRICS[algorithm][0]]
    with pytest.raises(ConfigError) as caught:
        algorithm.check(algorithm.Config(**{**PLAIN, **change}), interface, T)
    assert [word for word in words if word not in str(caught.value)] == []


def test_infinite_bounds_are_none():
    config = PPOConfig(correction="vtrace", rho_bar=math.inf, c_bar=math.inf)
    PPO.check(config, INTERFACES["independent"], T)
    agent = agent_of(algorithm=PPO, correction="vtrace", rho_bar=math.inf, c_bar=math.inf)
    batch, _ = stale_batch(agent)
    metrics = agent.learn(batch, torch.arange(B), total=B, seed=0, env_steps=0)
    assert all(math.isfinite(x) for x in metrics.values())
    assert metrics["loss/truncated_weights"] == 0


def test_coma_refuses_vtrace_and_says_what_has_it():
    interface = INTERFACES["choices"]
    COMA.check(COMAConfig(correction="none"), interface, T)
    with pytest.raises(
        ConfigError, match=r"algorithm\.correction=vtrace .*algorithm\.correction=truncated.*algorithm=ppo"
    ) as caught:
        COMA.check(COMAConfig(correction="vtrace"), interface, T)
    for name in ("ppo", "a2c", "happo"):
        assert name in str(caught.value)


def test_the_default_is_to_truncate_weights_at_two():
    for config in (A2CConfig(), PPOConfig(), COMAConfig()):
        assert (config.correction, config.max_weight, config.rho_bar, config.c_bar) == ("truncated", 2.0, 1.0, 1.0)
