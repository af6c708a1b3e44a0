"""MADDPG against its definition written out: who is differentiated, what the others did, and what masks forbid."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from rigs.drawn import SPACES, batch_of, build, gradients, interface_of, minibatch_of

from marl_hpc.algorithms.maddpg import MADDPG, MADDPGConfig
from marl_hpc.algorithms.off_policy_actor_critic import CRITIC, POLICY
from marl_hpc.config import ConfigError
from marl_hpc.distributions import distribution_of, draw_noise

CONFIG = MADDPGConfig(hidden=[8], batch=6, gamma=0.9)


def one_hot(choice, n=4):
    return torch.nn.functional.one_hot(choice, n).double()


def inputs_of(minibatch, prefix, s, n, others, own=()):
    """What the critic sees of agent n (0 and 1 of group a, 2 of group b) in sequence s, its own action apart."""
    group, i = ("a", n) if n < 2 else ("b", 0)
    identity = [torch.eye(2, dtype=torch.float64)[i]] if group == "a" else []
    rest = [torch.zeros_like(x) if j == n else x for j, x in enumerate(others)]
    observation, state = minibatch[f"{group}/{prefix}observation"][0, s, i], minibatch[f"{prefix}state"][0, s]
    return torch.cat([observation, *identity, state, *rest, *own])


def did(minibatch, s):
    """What all three agents of sequence s did, encoded; nothing where one doesn't act."""
    a = one_hot(minibatch["a/action"][0, s]) * minibatch["a/active"][0, s, :, None]
    return [*a, minibatch["b/action"][0, s, 0]]


def test_targets_are_the_target_critics_of_what_the_target_policies_would_do():
    interface = interface_of("discrete", "box", mask=True)
    maddpg = build(MADDPG, CONFIG, interface)
    minibatch = minibatch_of(maddpg, batch_of(interface), CRITIC)
    target, known = maddpg.bootstrapped(minibatch, maddpg.taken(minibatch))
    scores = maddpg.target_policies["a"].network(minibatch["a/next_observation"])[0]
    scores = scores.masked_fill(~minibatch["a/next_action_mask"][0], -np.inf).log_softmax(-1)
    choice = one_hot((scores - (-minibatch["a/next_noise"][0].log()).log()).argmax(-1))
    action = maddpg.target_policies["b"].network(minibatch["b/next_observation"])[0].tanh()  # without noise
    for s in range(6):
        here = torch.ones(3) if s == 1 else torch.tensor([*minibatch["a/next_active"][0, s], *minibatch["b/next_active"][0, s]])
        own = [*choice[s], action[s, 0]]
        others = [x * acts for x, acts in zip(own, here, strict=True)]
        for n in range(3):
            group, i = ("a", n) if n < 2 else ("b", 0)
            x = inputs_of(minibatch, "next_", s, n, others, [own[n]] if n == 2 else [])
            q = maddpg.target_critic.networks["ab".index(group)].body(x)
            value = (q * own[n]).sum().item() if n < 2 else q.item()
            after = 0.0 if minibatch[f"{group}/terminated"][0, s, i] else value
            assert known[0, s, n] == minibatch[f"{group}/active"][0, s, i]
            if known[0, s, n]:
                assert target[0, s, n].item() == pytest.approx(minibatch[f"{group}/reward"][0, s, i].item() + 0.9 * after, abs=1e-9)


def test_the_critics_loss_is_the_squared_error_of_what_was_done():
    interface = interface_of("discrete", "box")
    maddpg = build(MADDPG, CONFIG, interface)
    minibatch = minibatch_of(maddpg, batch_of(interface), CRITIC)
    target, known = maddpg.bootstrapped(minibatch, maddpg.taken(minibatch))
    expected = 0.0
    for s in range(6):
        for n in range(3):
            own = did(minibatch, s)[n]
            network = maddpg.critics[0].networks[n // 2]
            q = network.body(inputs_of(minibatch, "", s, n, did(minibatch, s), [own] if n == 2 else []))
            value = (q * own).sum() if n < 2 else q.squeeze()
            expected += ((value - target[0, s, n]) ** 2 * known[0, s, n]).item()
    assert gradients(maddpg, minibatch)[0] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_policys_gradient_is_straight_through_gumbel_softmax_of_the_own_action(temperature):
    """d/dlogits of Q is the softmax's own derivative, (diag(s) - s s^T) / temperature, times Q of each choice, s at the drawn noise; for
    a box the chain rule through tanh."""
    interface = interface_of("discrete", "box", mask=True)
    maddpg = build(MADDPG, replace(CONFIG, temperature=temperature, regularization=0.0), interface)
    minibatch = minibatch_of(maddpg, batch_of(interface), POLICY)
    loss, _, gradient = gradients(maddpg, minibatch)
    expected = {name: torch.zeros_like(x) for name, x in gradient.items() if name in "ab"}
    total = 0.0
    for s in range(6):
        for n in range(3):
            group, i = ("a", n) if n < 2 else ("b", 0)
            if not minibatch[f"{group}/active"][0, s, i]:
                continue
            said = maddpg.policies[group].network(minibatch[f"{group}/observation"])[0, s, i]
            network = maddpg.critics[0].networks["ab".index(group)]
            if group == "a":
                legal, noise = minibatch["a/action_mask"][0, s, i], minibatch["a/noise"][0, s, i]
                scores = (said.detach() - (-noise.log()).log()).masked_fill(~legal, -np.inf)
                soft = (scores / temperature).softmax(-1)
                q = network.body(inputs_of(minibatch, "", s, n, did(minibatch, s))).detach()
                direction = (torch.diag(soft) - torch.outer(soft, soft)) @ q / temperature
                total -= q[scores.argmax()].item()
            else:
                own = said.detach().tanh().requires_grad_()
                q = network.body(inputs_of(minibatch, "", s, n, did(minibatch, s), [own])).squeeze()
                direction = torch.autograd.grad(q, own)[0] * (1 - own.detach() ** 2)
                total -= q.item()
            written = torch.autograd.grad(
                (said * -direction).sum(), [p for p in maddpg.policies[group].parameters() if p.requires_grad]
            )
            flat = torch.cat([x.flatten() for x in written])
            expected[group][-len(flat) :] += flat  # a box's fixed deviation stands before the network
    assert loss == pytest.approx(total, abs=1e-9)
    for name, x in expected.items():
        assert x.abs().max() > 1e-3
        torch.testing.assert_close(gradient[name], x, rtol=0, atol=1e-9)


def test_an_agents_gradient_reaches_its_own_policy_and_no_other():
    interface = interface_of("discrete", "box")
    maddpg = build(MADDPG, CONFIG, interface)
    batch = batch_of(interface)
    batch["b/active"][:] = False
    gradient = gradients(maddpg, minibatch_of(maddpg, batch, POLICY))[2]
    assert gradient["a"].abs().max() > 1e-3
    assert gradient["b"].abs().max() == 0


def test_the_others_actions_come_from_replay_and_not_from_their_policies():
    interface = interface_of("discrete", "box")
    maddpg = build(MADDPG, CONFIG, interface)
    batch = batch_of(interface)
    before = gradients(maddpg, minibatch_of(maddpg, batch, POLICY))[2]["a"]
    with torch.no_grad():
        for p in maddpg.policies["b"].parameters():
            p += 1
    assert torch.equal(gradients(maddpg, minibatch_of(maddpg, batch, POLICY))[2]["a"], before)
    batch["b/action"] *= -1
    assert (gradients(maddpg, minibatch_of(maddpg, batch, POLICY))[2]["a"] - before).abs().max() > 1e-6


@pytest.mark.parametrize("kind", ["discrete", "several"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [0.1, 1.0, 5.0])
def test_masked_choices_are_never_relaxed_to_and_have_no_gradient(kind, dtype, temperature):
    space = SPACES[kind]
    distribution = distribution_of(space, "bounded")
    random = np.random.default_rng(0)
    mask = torch.from_numpy(random.random((5_000, space.size)) < 0.4)
    mask[:, np.cumsum([0, *space.choices[:-1]])] = True
    outputs = torch.from_numpy(3 * random.normal(size=mask.shape)).to(dtype).requires_grad_()
    noise = torch.from_numpy(draw_noise(space, random, (5_000,))).to(dtype)
    parameters = distribution.parameters(outputs, mask)
    action = distribution.relaxed(parameters, noise, temperature)
    assert torch.equal(action.round(), distribution.one_hot(distribution.sample(parameters, noise), dtype))
    assert action[~mask].abs().max() == 0
    (action * torch.from_numpy(random.normal(size=mask.shape))).sum().backward()
    assert torch.isfinite(outputs.grad).all()
    assert outputs.grad[~mask].abs().max() == 0
    assert outputs.grad[mask].abs().max() > 0


def test_regularization_is_the_mean_square_of_legal_logits_and_of_unbounded_actions():
    interface = interface_of("discrete", "box", mask=True)
    batch = batch_of(interface)
    losses, results = [], []
    for weight in (0.0, 0.001, 1.0):
        maddpg = build(MADDPG, replace(CONFIG, regularization=weight), interface)
        minibatch = minibatch_of(maddpg, batch, POLICY)
        loss, sums, _ = gradients(maddpg, minibatch)
        losses.append(loss)
        results.append(sums)
    logits = maddpg.policies["a"].network(minibatch["a/observation"])[0].detach()
    action = maddpg.policies["b"].network(minibatch["b/observation"])[0].detach()
    expected = (action**2).mean(-1).sum().item()
    for s, i in np.ndindex(6, 2):
        if minibatch["a/active"][0, s, i]:
            expected += (logits[s, i][minibatch["a/action_mask"][0, s, i]] ** 2).mean().item()
    assert results[0]["output"] == pytest.approx(expected, abs=1e-9)
    assert losses[1] - losses[0] == pytest.approx(0.001 * expected, abs=1e-9)
    assert losses[2] - losses[0] == pytest.approx(expected, abs=1e-9)


def test_regularized_masked_logits_have_no_gradient_either():
    interface = interface_of("several", mask=True)
    maddpg = build(MADDPG, replace(CONFIG, regularization=1.0), interface)
    minibatch = minibatch_of(maddpg, batch_of(interface), POLICY)
    outputs = maddpg.policies["a"].network(minibatch["a/observation"]).detach().requires_grad_()
    own = maddpg.actions(minibatch, {"a": outputs}, "")
    q = maddpg.critics[0](minibatch, maddpg.taken(minibatch), own=own)["a"]
    ((q * own["a"]).sum() + maddpg.square(minibatch, "a", outputs).sum()).backward()
    illegal = ~minibatch["a/action_mask"]
    assert outputs.grad[illegal].abs().max() == 0
    assert outputs.grad[~illegal].abs().min() > 0


def test_boxes_explore_with_the_noise_that_is_asked_for_and_stay_in_their_limits():
    interface = interface_of("box")
    maddpg = build(MADDPG, replace(CONFIG, noise=0.3), interface)
    seen = {"observation": torch.ones(4_000, 2, 3, dtype=torch.float64), "active": torch.ones(4_000, 2, dtype=torch.bool)}
    noise = torch.from_numpy(draw_noise(SPACES["box"], np.random.default_rng(0), (4_000, 2)))
    policy, memory = maddpg.policies["a"], torch.zeros(4_000, 2, 0)
    with torch.no_grad():
        quiet = policy.act({"a": seen}, memory, None)[0]["a"]
        loud = policy.act({"a": seen}, memory, {"a": noise})[0]["a"]
    mean = policy.network(seen["observation"][:1]).detach().tanh()
    torch.testing.assert_close(quiet, mean.expand_as(quiet))
    deviation = policy.log_std["a"].exp()  # whatever the rig has moved it to
    torch.testing.assert_close(loud, (mean + noise * deviation).clamp(-1, 1))
    fresh = MADDPG(replace(CONFIG, noise=0.3), interface, maddpg.exchange, device="cpu", dtype=torch.float64, seed=0)
    assert fresh.policies["a"].log_std["a"].exp().tolist() == pytest.approx([0.3, 0.3])


def test_epsilon_falls_linearly():
    config = replace(CONFIG, epsilon_start=0.5, epsilon_end=0.1, epsilon_steps=1_000)
    assert [MADDPG.exploration(config, steps) for steps in (0, 500, 1_000, 9_000)] == pytest.approx([0.5, 0.3, 0.1, 0.1])
    assert MADDPG.exploration(CONFIG, 0) == 0


@pytest.mark.parametrize(
    ("interface", "options", "words"),
    [
        (interface_of(paradigm="independent"), {}, ["algorithm=maddpg", "needs a team", "paradigm=independent", "use algorithm=sac or dqn"]),
        (interface_of(paradigm="centralized"), {}, ["algorithm=maddpg", "needs a team", "paradigm=centralized", "ppo"]),
        (interface_of(), {"temperature": 0.0}, ["algorithm.temperature=0.0", "greater than 0"]),
        (interface_of(), {"regularization": -1.0}, ["algorithm.regularization=-1.0", "0 or more"]),
        (interface_of("box"), {"noise": 0.0}, ["algorithm.noise=0.0", "greater than 0", "explores"]),
        (interface_of(), {"epsilon_start": 1.5}, ["algorithm.epsilon_start=1.5", "between 0 and 1"]),
        (interface_of(), {"epsilon_steps": -1}, ["algorithm.epsilon_steps=-1", "0 (epsilon_end at once)"]),
        (interface_of("box"), {"epsilon_start": 0.5}, ["algorithm.epsilon_start=0.5", "choices", "leave it out"]),
        (interface_of("box"), {"temperature": 0.5}, ["algorithm.temperature=0.5", "choices", "leave it out"]),
        (interface_of(), {"noise": 0.5}, ["algorithm.noise=0.5", "boxes", "leave it out"]),
    ],
)  # fmt: skip
def test_what_it_cannot_serve_is_refused_with_what_would_work(interface, options, words):
    with pytest.raises(ConfigError) as caught:
        MADDPG.check(MADDPGConfig(**options), interface, 10)
    assert [word for word in words if word not in str(caught.value)] == []
