"""Asynchronous training of an Independent- or TeamAgent: gradients go to the parameter shards, whose optimizers take the steps.

What an interface trains, and for what reward, stays the wrapped agent's business; this changes only how gradients are exchanged: each
replica learns from batches of its own and goes on with the newest parameters, whoever made them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from marl_hpc.agents.interface import AgentInterface
from marl_hpc.storage.vectors import EVERY_PART


class Servers(Protocol):
    """The parameter shards, as an agent needs them; see `marl_hpc.roles.servers`."""

    def define(self, name: str, values: Tensor, policies: int, parts: list[tuple[int, int, dict[str, Any]]]) -> None: ...

    def exchange(
        self, name: str, learner: int, sequence: int, gradient: Tensor, part: int, base: tuple[int, int], moments: Tensor | None
    ) -> Any: ...

    def latest(self, name: str) -> Any: ...


class Ended(Exception):
    """Training is over: no gradient is taken any more."""


class AsynchronousAgent:
    """Wraps an agent that learns alone, without replicas that it would sum gradients with.

    `gradients` is the type that gradients are sent in. Counters are global: target networks follow the number of all learners' updates.
    """

    def __init__(self, agent: AgentInterface, servers: Servers, learner: int, gradients: torch.dtype) -> None:
        self.agent, self.servers, self.learner, self.gradients = agent, servers, learner, gradients
        self.interface = agent.interface
        self.version = 0
        self.sequence = 0
        self.taken = 0  # gradients that made a version
        self.moments: Tensor | None = None  # that the shards haven't been told
        self.status: dict[str, Any] = {}
        agent.updater = self.hand_in

    @property
    def algorithm(self) -> Any:
        return self.agent.algorithm

    def start(self) -> None:
        """Say what is trained, unless another replica or a checkpoint has, and take up what the shards have."""
        parameters = self.agent.parameters
        policies = sum(parameters.sizes[: len(self.interface.policies)])
        parts = [
            (part.start or 0, len(parameters.values) if part.stop is None else part.stop, spec.to_json())
            for part, spec in self.agent.parts
        ]
        self.servers.define(self.interface.name, parameters.values.detach().cpu().clone(), policies, parts)
        self.take(self.servers.latest(self.interface.name), stepped=False)

    def learn(
        self, batch: dict[str, Tensor], columns: Tensor, *, total: int, seed: int, env_steps: int, alive: Callable[[], None]
    ) -> dict[str, float]:
        """As `AgentInterface.learn`, from a batch of this replica's own. Raises Ended when training is over."""
        if hasattr(self.algorithm, "critic_memory"):
            self.algorithm.critic_memory = None  # the next batch isn't of the same copies
        return self.agent.learn(batch, columns, total=total, seed=seed, env_steps=env_steps, alive=alive)

    def hand_in(self) -> None:
        """Give the gradient that is there to the shards, and go on with the newest parameters."""
        gradient = self.agent.parameters.values.grad
        assert gradient is not None, "FlatParameters gives its buffer a gradient for good"
        statistics = getattr(self.algorithm, "values", None)
        moments = None
        if statistics is not None:
            moments, statistics.latest = statistics.latest, None
        trained = self.algorithm.trained
        answer = self.servers.exchange(
            self.interface.name, self.learner, self.sequence, gradient.detach().to("cpu", self.gradients, copy=True),
            EVERY_PART if trained is None else trained, (self.version, self.agent.updates), moments,
        )  # fmt: skip
        self.sequence += 1
        self.taken += not answer.dropped
        self.take(answer, stepped=True)
        if answer.status["final"] or answer.status["failed"]:
            raise Ended

    def take(self, answer: Any, *, stepped: bool) -> None:
        """Go on with these parameters and statistics."""
        with torch.no_grad():
            self.agent.parameters.values.copy_(answer.values)
        statistics = getattr(self.algorithm, "values", None)
        if statistics is not None:
            statistics.moments = answer.moments.clone()
        if stepped:
            for update in range(self.agent.updates + 1, answer.updates + 1):
                self.algorithm.stepped(update)
        self.version, self.status, self.agent.updates = answer.version, answer.status, answer.updates
