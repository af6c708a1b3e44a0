"""AgentInterface: trains its agents with batches from the dataset shards, and publishes versions of their policies.

The gradient step is here. What differs between paradigms is what agents are rewarded for and whom an interface exchanges with.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from marl_hpc import optimizers
from marl_hpc.keyed_random import INITIALIZATION, integer
from marl_hpc.policies import export_policy
from marl_hpc.types import Exchange, InterfaceSpec


class AgentInterface(ABC):
    """The learner of an interface's agents, or one replica of it; `exchange` sums over its replicas."""

    def __init__(
        self,
        algorithm: type,
        config: Any,
        interface: InterfaceSpec,
        exchange: Exchange,
        *,
        device: torch.device,
        dtype: torch.dtype,
        seed: int,
    ) -> None:
        self.interface, self.exchange, self.device, self.dtype, self.seed = interface, exchange, device, dtype, seed
        self.config = config
        self.algorithm = algorithm(config, interface, exchange, device=device, dtype=dtype, seed=seed)
        self.take_up(self.algorithm)
        self.max_grad_norm = config.max_grad_norm
        self.network = algorithm.network(config, interface)
        self.env_steps = 0  # that had been learned from before the present batch
        self.updater: Callable[[], None] = self.update  # another may take the steps: see AsynchronousAgent

    def take_up(self, algorithm: Any) -> None:
        """Train what an algorithm has, from its beginning."""
        self.algorithm, self.parameters = algorithm, algorithm.parameters
        self.parts = [(part, optimizer_spec(self.config, lr)) for part, lr in algorithm.parts()]
        self.optimizers = [optimizers.build(spec, self.parameters.values.detach()[part]) for part, spec in self.parts]
        self.updates = 0  # gradient steps
        self.samples = 0.0  # that the last batch's metrics are of

    def begin_anew(self, number: int) -> None:
        """Forget what was learned; networks are initialized by the seed and this number."""
        seed = integer(self.seed, INITIALIZATION, number)
        anew = type(self.algorithm)(self.config, self.interface, self.exchange, device=self.device, dtype=self.dtype, seed=seed)
        self.take_up(anew)

    @abstractmethod
    def rewarded(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The batch with the rewards that are optimized."""

    def learn(
        self,
        batch: dict[str, Tensor],
        columns: Tensor,
        *,
        total: int,
        seed: int,
        env_steps: int,
        alive: Callable[[], None] = lambda: None,
    ) -> dict[str, float]:
        """One batch of fields group/field [T, B, N, …], whose copies are the `columns` [B] of `total`. Returns metrics of it all.

        `alive` is called after every gradient step: a large network may need longer for a batch than a hung process gets.
        """
        self.env_steps = env_steps
        batch = {name: x.to(self.device).contiguous() for name, x in batch.items()}
        history = []
        for minibatch in self.algorithm.minibatches(self.rewarded(batch), columns, total, seed, env_steps):
            history.append(self.gradient_step(minibatch))
            alive()
        self.samples = float(torch.stack(history)[:, self.algorithm.sums.index("count")].sum()) if history else 0.0
        return self.algorithm.summarize(torch.stack(history)) if history else {}

    def gradient_step(self, minibatch: dict[str, Tensor]) -> Tensor:
        """Loss, backward, sum over replicas, clip, step. Returns the minibatch's sums over all replicas."""
        sums = self.gradient(minibatch)
        self.updater()
        return sums

    def update(self) -> None:
        """Take a step with the gradient that is there."""
        values = self.parameters.values
        assert values.grad is not None, "FlatParameters gives its buffer a gradient for good"
        for place, ((part, _), optimizer) in enumerate(zip(self.parts, self.optimizers, strict=True)):
            if self.algorithm.trained is None or self.algorithm.trained == place:
                optimizer.step(values.detach()[part], values.grad[part], self.annealing(place))
        self.updates += 1
        self.algorithm.stepped(self.updates)

    def annealing(self, part: int) -> float:
        """The factor of a part's learning rate now; algorithms may have it fall with gradient steps and environment steps."""
        falls = getattr(self.algorithm, "annealing", None)
        return 1.0 if falls is None else falls(part, self.updates, self.env_steps)

    def gradient(self, minibatch: dict[str, Tensor]) -> Tensor:
        """Leave the minibatch's mean gradient over all replicas, clipped by the norm of the whole vector, in the buffer's `grad`.
        Returns the minibatch's sums. Raises FloatingPointError when the gradient isn't finite."""
        parameters = self.parameters
        parameters.message.zero_()
        loss, sums = self.algorithm.loss(minibatch)
        loss.backward()
        parameters.sums.copy_(torch.stack([sums[name] for name in self.algorithm.sums]))
        self.exchange.sum_(parameters.message)  # gradient and sums in one message
        gradient = parameters.values.grad
        gradient /= parameters.sums[self.algorithm.sums.index("count")].clamp_min(1)
        norm = gradient.norm()  # clipped after the reduction: every replica scales alike
        if not torch.isfinite(norm):
            raise FloatingPointError(
                f"gradient of {self.interface.name!r} is {float(norm)} at gradient step {self.updates}: "
                "its batch was finite; lower algorithm.lr or algorithm.max_grad_norm"
            )
        gradient *= (self.max_grad_norm / (norm + 1e-6)).clamp_max(1)
        return parameters.sums.clone()

    def policy_values(self) -> dict[str, Tensor]:
        """{policy: its flat parameters}, a snapshot on the CPU: what is published."""
        sizes = self.parameters.sizes[: len(self.interface.policies)]
        parts = self.parameters.values.detach()[: sum(sizes)].to("cpu", copy=True).split(sizes)
        return dict(zip(self.interface.policies, parts, strict=True))

    def state(self) -> dict[str, Tensor]:
        """All that training goes on from, for a checkpoint."""
        parts = {f"optimizer{i}": optimizer.state() for i, optimizer in enumerate(self.optimizers)}
        parts["algorithm"] = self.algorithm.state()
        record = {f"{part}.{name}": x.detach().cpu() for part, state in parts.items() for name, x in state.items()}
        updates = torch.tensor(self.updates)
        return {**record, "values": self.parameters.values.detach().cpu(), "updates": updates}

    def state_copy(self) -> dict[str, Tensor]:
        """`state` as it is now, whatever happens later."""
        return {name: x.clone() for name, x in self.state().items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        if state["values"].shape != self.parameters.values.shape:
            raise ValueError(
                f"the checkpoint of {self.interface.name!r} has {len(state['values'])} parameters, this network {len(self.parameters.values)}"
            )
        with torch.no_grad():
            self.parameters.values.copy_(state["values"])
        self.updates = int(state["updates"])

        def of(part: str) -> dict[str, Tensor]:
            return {name.removeprefix(part): x for name, x in state.items() if name.startswith(part)}

        for i, optimizer in enumerate(self.optimizers):
            optimizers.load_state(optimizer, of(f"optimizer{i}."))
        self.algorithm.load_state(of("algorithm."))

    def load_parts(self, states: Sequence[dict[str, Tensor]]) -> None:
        """As `load_state`, from what all ranks saved that had a part of the interface's agents, then: one, where they aren't divided."""
        (state,) = states
        self.load_state(state)

    def export(self, name: str, path: Path, version: int) -> None:
        """Write a policy for use without any of this."""
        export_policy(path, self.interface.policies[name], self.policy_values()[name], self.network, version)


def optimizer_spec(config: Any, lr: float) -> optimizers.OptimizerSpec:
    return optimizers.OptimizerSpec(
        name=config.optimizer, lr=lr, eps=config.adam_eps, weight_decay=config.weight_decay, momentum=config.momentum
    )


def describe_non_finite(batch: dict[str, Tensor], interface: InterfaceSpec) -> str:
    """Which fields [T, B, N, …] of a batch hold NaN or infinity, of which agents; or nothing."""
    bad = []
    for name, x in batch.items():
        if x.is_floating_point() and not torch.isfinite(x).all():
            group = next((group for group in interface.groups if name.startswith(f"{group.name}/")), None)
            who = ""
            if group is not None and x.dim() >= 3 and x.shape[2] == len(group.agents):
                hit = ~torch.isfinite(x).transpose(0, 2).flatten(1).all(1)
                who = f" of {', '.join(agent for agent, b in zip(group.agents, hit.tolist(), strict=True) if b)}"
            bad.append(f"{name.rpartition('/')[2]}{who}")
    return f"NaN or infinity in {', '.join(bad)}" if bad else ""
