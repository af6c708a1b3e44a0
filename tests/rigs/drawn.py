"""Batches as replay tables give them, for teams of any kind: two groups, `a` of two agents and `b` of one."""

from __future__ import annotations

import numpy as np
import torch

from marl_hpc.agents import IndependentAgent
from marl_hpc.types import ActionSpace, GroupSpec, InterfaceSpec
from rigs.replicas import Alone

SPACES = {
    "discrete": ActionSpace(kind="discrete", n=4),
    "several": ActionSpace(kind="multi_discrete", nvec=(3, 2)),
    "box": ActionSpace(kind="box", shape=(2,)),
}
STATE = 5


def interface_of(a="discrete", b=None, paradigm="ctde", mask=False):
    """Group a and, where given, group b."""
    sizes = {"a": (2, 3), "b": (1, 2)}
    groups = tuple(
        GroupSpec(
            name=name, agents=tuple(f"{name}{i}" for i in range(sizes[name][0])), observation_shape=(sizes[name][1],),
            action_space=SPACES[space], action_mask=mask and space != "box",
        )
        for name, space in (("a", a), ("b", b)) if space is not None
    )  # fmt: skip
    return InterfaceSpec(
        name="team", paradigm=paradigm, groups=groups, critic_sees={"ctde": "state"}.get(paradigm, "own"),
        state_size=STATE if paradigm == "ctde" else 0, joint_policy=paradigm == "centralized",
    )  # fmt: skip


def batch_of(interface, sequences=6, steps=1, updates=1, seed=0, dtype=torch.float64, units=0):
    """Fields [L, U, S, …]. Sequence 0 terminates with its last step, sequence 1 is truncated there, in 2 the first agent doesn't act, in 3
    one has gone after the last step."""
    random = np.random.default_rng(seed)
    lead = (steps, updates, sequences)

    def numbers(*shape):
        return torch.from_numpy(random.normal(size=shape)).to(dtype)

    batch = {"first": torch.zeros(lead, dtype=torch.bool), "weight": torch.ones(1, updates, sequences, dtype=dtype)}
    if interface.critic_sees == "state":
        batch |= {"state": numbers(*lead, STATE), "next_state": numbers(*lead, STATE)}
    for i, g in enumerate(interface.groups):
        n, space = len(g.agents), g.action_space
        own = {name: numbers(*lead, n, *g.observation_shape) for name in ("observation", "next_observation")}
        own |= {name: torch.ones(*lead, n, dtype=torch.bool) for name in ("active", "next_active")}
        own |= {name: torch.zeros(*lead, n, dtype=torch.bool) for name in ("terminated", "truncated")}
        own["reward"] = numbers(*lead, n)
        own["terminated"][-1, :, 0], own["truncated"][-1, :, 1] = True, True
        own["next_active"][-1, :, :2] = False
        if i == 0:
            own["active"][:, :, 2, 0] = False
            own["next_active"][-1, :, 3, 0], own["terminated"][-1, :, 3, 0] = False, True
        masks = {name: np.ones((*lead, n, space.size), bool) for name in ("action_mask", "next_action_mask")}
        if g.action_mask:
            starts = np.cumsum([0, *space.choices[:-1]])
            for mask in masks.values():
                mask[:] = random.random(mask.shape) < 0.5
                mask[..., starts + 1] = True
            own |= {name: torch.from_numpy(mask) for name, mask in masks.items()}
        if space.kind == "box":
            own["action"] = numbers(*lead, n, space.size).tanh()
        else:
            scores = np.where(masks["action_mask"], random.random((*lead, n, space.size)), -1.0)
            ends = np.cumsum(space.choices)
            parts = [scores[..., end - size : end].argmax(-1) for end, size in zip(ends, space.choices, strict=True)]
            own["action"] = torch.from_numpy(np.stack(parts, -1) if space.kind == "multi_discrete" else parts[0])
        batch |= {f"{g.name}/{name}": x for name, x in own.items()}
        if units:
            batch[f"{g.name}/memory"] = numbers(1, updates, sequences, n, units)
    return batch


def build(algorithm, config, interface, exchange=None, seed=0, dtype=torch.float64):
    """An algorithm whose networks prefer something, and whose targets are others."""
    built = algorithm(config, interface, exchange or Alone(), device="cpu", dtype=dtype, seed=seed)
    prefer(built)
    return built


def prefer(built):
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for module in [*built.policies.values(), *built.critics, *built.target.copies]:
            for p in module.parameters():
                p += 0.3 * torch.randn(p.shape, dtype=p.dtype, generator=generator)


def agent_of(algorithm, config, interface, exchange=None, seed=0, dtype=torch.float64):
    agent = IndependentAgent(algorithm, config, interface, exchange or Alone(), device=torch.device("cpu"), dtype=dtype, seed=seed)
    prefer(agent.algorithm)
    return agent


def minibatch_of(algorithm, batch, trained, seed=5):
    """The first minibatch of a batch, in the pass that trains this part."""
    total = batch["first"].shape[2]
    for minibatch in algorithm.minibatches(batch, torch.arange(total), total, seed, 0):
        if algorithm.trained == trained:
            return minibatch
    raise AssertionError(f"no pass trains {trained}")


def gradients(algorithm, minibatch):
    """(loss, sums, gradient by module) of a pass."""
    algorithm.parameters.message.zero_()
    loss, sums = algorithm.loss(minibatch)
    loss.backward()
    parts = algorithm.parameters.values.grad.clone().split(algorithm.parameters.sizes)
    names = [*algorithm.policies, *(f"critic {i}" for i in range(len(algorithm.critics))), "temperature"]
    return loss.item(), {name: float(x) for name, x in sums.items()}, dict(zip(names, parts, strict=False))
