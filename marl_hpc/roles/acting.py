"""Who decides what agents do: policies of one's own, or an inference role that is asked.

Both answer the same questions by the same function, `answer`. What decides a draw (noise, exploration, memory) comes with the question,
so whoever answers knows nothing of episodes. B copies, N agents of a group; fields by group.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from marl_hpc.actors import PolicyNetwork
from marl_hpc.networks import load_flat
from marl_hpc.types import Seen


class Question(NamedTuple):
    """What one policy is asked in one step."""

    inputs: dict[str, dict[str, Tensor]]  # observation [B, N, …] as the environment gives it, active [B, N], action_mask [B, N, A]
    memory: Tensor  # [B, rows, H]
    noise: dict[str, Tensor] | None  # [B, N, A] in the policy's dtype; None: the most likely actions
    epsilon: float  # the least probability of acting uniformly at random


class Answer(NamedTuple):
    """What it says to that."""

    actions: dict[str, Tensor]  # [B, N, …]
    log_probs: dict[str, Tensor]  # [B, N]
    memory: Tensor  # [B, rows, H] after the step


class Acting(Protocol):
    """What acts."""

    @property
    def policies(self) -> Mapping[str, PolicyNetwork]:
        """Groups and shapes of every policy; whether its numbers are here is this object's own business."""
        ...

    def act(self, questions: Mapping[str, Question]) -> dict[str, Answer]:
        """An answer to each policy's question. The tensors of a question must not change before."""
        ...


class Inference(Acting, Protocol):
    """What a rollout worker acts by where it says which version that is; see `roles.following` for where it doesn't."""

    def turn_to(self, version: int) -> int | None:
        """Act by exactly this version from now on, waiting for it; the final version instead when training ended before it."""
        ...


class OwnPolicies:
    """Policies in this process, as they are."""

    def __init__(self, policies: Mapping[str, PolicyNetwork]) -> None:
        self.policies = policies

    def load(self, values: Mapping[str, Tensor]) -> None:
        """Fill these policies from their flat parameters."""
        for name, flat in values.items():
            load_flat(self.policies[name], flat)

    def act(self, questions: Mapping[str, Question]) -> dict[str, Answer]:
        return {name: answer(self.policies[name], question) for name, question in questions.items()}


class OwnVersions(OwnPolicies):
    """Policies in this process, by version."""

    def __init__(self, policies: Mapping[str, PolicyNetwork], pull: Callable[[int], dict[str, Tensor] | int]) -> None:
        """`pull`: see `ParameterClient.pull`."""
        super().__init__(policies)
        self.pull = pull

    def turn_to(self, version: int) -> int | None:
        pulled = self.pull(version)
        if isinstance(pulled, int):
            return pulled
        self.load(pulled)
        return None


def ask(policy: PolicyNetwork, seen: Seen, memory: Tensor, noise: dict[str, Tensor] | None, epsilon: float) -> Question:
    """The question what to do where its groups see this."""
    inputs = {}
    for group in policy.groups:
        inputs[group.name] = {
            "observation": torch.from_numpy(seen.observation[group.name]),
            "active": torch.from_numpy(seen.active[group.name]),
        }
        if group.name in seen.action_mask:
            inputs[group.name]["action_mask"] = torch.from_numpy(seen.action_mask[group.name])
    return Question(inputs, memory, noise, epsilon)


@torch.no_grad()
def answer(policy: PolicyNetwork, question: Question) -> Answer:
    """One forward pass, where the policy is; the answer is on the CPU."""
    like = next(policy.parameters())
    inputs = {
        group: {name: x.to(like.device, like.dtype if name == "observation" else None) for name, x in fields.items()}
        for group, fields in question.inputs.items()
    }
    noise = None if question.noise is None else {group: x.to(like.device) for group, x in question.noise.items()}
    policy.epsilon = question.epsilon
    actions, log_probs, memory = policy.act(inputs, question.memory.to(like.device), noise)
    return Answer(
        {group: x.cpu() for group, x in actions.items()}, {group: x.cpu() for group, x in log_probs.items()}, memory.cpu()
    )


def dtype_of(policy: PolicyNetwork) -> torch.dtype:
    return next(policy.parameters()).dtype
