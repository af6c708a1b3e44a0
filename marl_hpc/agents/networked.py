"""Networked learning: agents with parameters of their own, who coordinate with their neighbors on a graph and with nobody else.

Each agent learns from what it sees and earns itself; after each gradient step it mixes parameters with its neighbors' (consensus on the
critics, as in Zhang et al. 2018, or on everything). One NetworkedAgent holds many agents, or those of them that a rank owns: their
networks are stacked, and every number here, clipping and normalization included, is one agent's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from marl_hpc.agents.interface import AgentInterface
from marl_hpc.policies import Part, export_policy
from marl_hpc.types import Exchange

TINY = 1e-24  # what is divided by is no less


class Neighbors(Exchange, Protocol):
    """How this rank's n agents reach their neighbors, on whatever ranks those are; see `marl_hpc.comm.graphs`."""

    agents: np.ndarray  # [n] their numbers among all
    everyone: int  # how many those are
    parts: int  # ranks that all agents are divided among

    def mix(self, rows: Tensor) -> None:
        """Each agent's row of [n, P] becomes the weighted mean of its own and its neighbors', in place."""
        ...

    def turn_to(self, step: int) -> None:
        """Mix by the graph of this step from now on, where it changes from one to the next."""
        ...

    def rewards(self, reward: Tensor) -> Tensor:
        """Each agent's reward [..., n] with its neighborhood's, as far as agents care for those."""
        ...

    def total_(self, tensor: Tensor) -> None:
        """Sum over all ranks, in place: for metrics."""
        ...

    def traffic(self) -> dict[str, float]:
        """What this rank has sent since the last call: `bytes`, `messages`, and how many `ranks` read it."""
        ...


class NetworkedAgent(AgentInterface):
    exchange: Neighbors

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        count = len(self.interface.agents)
        self.blocks = [block.view(count, -1) for block in self.parameters.values.detach().split(self.parameters.sizes)]
        skipped = {"all": 0, "critic": len(self.interface.policies), "none": len(self.blocks)}[self.interface.mix]
        self.mixed = self.blocks[skipped:]
        self.moved: Tensor | None = None  # squares of how far a batch's first mixing moved agents, and of where they were
        self.wrong = ""
        statistics = getattr(self.algorithm, "values", None)
        if statistics is not None and self.mixed:  # critics that are averaged have to speak in one unit
            statistics.mixed = self.mix_moments

    def rewarded(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {**batch, **{f"{g.name}/reward": self.exchange.rewards(batch[f"{g.name}/reward"]) for g in self.interface.groups}}

    def gradient(self, minibatch: dict[str, Tensor]) -> Tensor:
        """Leave each agent's mean gradient, clipped by its own norm, in the buffer's `grad`. Returns the minibatch's sums. A gradient that
        isn't finite is left out, and `learn` says so in the end: others are waiting to mix with these agents."""
        parameters = self.parameters
        parameters.message.zero_()
        loss, sums = self.algorithm.loss(minibatch)
        loss.backward()
        parameters.sums.copy_(torch.stack([sums[name] for name in self.algorithm.sums]))
        assert parameters.values.grad is not None, "FlatParameters gives its buffer a gradient for good"
        counts = minibatch["known"].sum((0, 1)).clamp_min(1)
        rows = [part.view(len(counts), -1) for part in parameters.values.grad.split(parameters.sizes)]
        norms = torch.stack([part.norm(dim=1) for part in rows]).norm(dim=0) / counts
        finite = torch.isfinite(norms)
        if not finite.all() and not self.wrong:
            bad = (~finite).nonzero().flatten().tolist()
            names = ", ".join(self.interface.agents[i] for i in bad[:5]) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
            self.wrong = (
                f"the gradient of {names} isn't finite at gradient step {self.updates}: their batch was finite; lower algorithm.lr or "
                "algorithm.max_grad_norm"
            )
        scale = (self.max_grad_norm / (norms + 1e-6)).clamp_max(1) / counts
        for part in rows:
            part *= scale[:, None]
            part[~finite] = 0
        return parameters.sums.clone()

    def update(self) -> None:
        """A step of each agent's own, then one of mixing."""
        super().update()
        self.exchange.turn_to(self.updates)
        first, moved = self.moved is None, self.parameters.values.new_zeros(2, dtype=torch.float64)
        for block in self.mixed:
            before = block.clone() if first else None
            self.exchange.mix(block)
            if before is not None:
                moved += torch.stack([squares(block - before), squares(before)])
        if first:
            self.moved = moved

    def export(self, name: str, path: Path, version: int) -> None:
        """As `AgentInterface.export`; of a part of the agents, with their places among all."""
        part = None
        if self.interface.part_of:
            part = Part(name.rpartition("-")[0], self.exchange.agents, self.exchange.parts)
        values = self.policy_values()[name]
        export_policy(path, self.interface.policies[name], values, self.network, version, part)

    def state(self) -> dict[str, Tensor]:
        """As `AgentInterface.state`, with what is an agent's own as rows [n, …] in the order of `agents`: whoever has an agent takes up
        its row."""
        rows = {name: self._to_rows(name, x) for name, x in super().state().items()}
        return {**rows, "agents": encoded(self.interface.agents)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.load_parts([state])

    def load_parts(self, states: Sequence[dict[str, Tensor]]) -> None:
        """Take up this part's agents from the states of all parts there were. Raises ValueError where some are missing."""
        found = [name for state in states for name in decoded(state["agents"])]
        place = {name: i for i, name in enumerate(found)}
        missing = [name for name in self.interface.agents if name not in place]
        if missing:
            raise ValueError(f"the checkpoint has nothing of {', '.join(missing[:5])}{', …' if len(missing) > 5 else ''}")
        own = torch.tensor([place[name] for name in self.interface.agents])
        state = {}
        for name, x in states[0].items():
            if name != "agents":
                of_agents = x.dim() > 0 and len(x) == len(decoded(states[0]["agents"]))
                state[name] = self._from_rows(name, torch.cat([s[name] for s in states])[own] if of_agents else x)
        super().load_state(state)
        self.exchange.turn_to(self.updates)

    def _widths(self, name: str) -> list[int] | None:
        """How many numbers of each block an agent has in a flat buffer of this name; None where it isn't one."""
        widths = [block.shape[1] for block in self.blocks]
        if name == "values":
            return widths
        part, _, field = name.partition(".")
        if not part.startswith("optimizer") or field not in ("mean", "square", "velocity"):
            return None
        chosen = self.parts[int(part.removeprefix("optimizer"))][0]
        start, stop, _ = chosen.indices(len(self.parameters.values))
        bounds = [0, *accumulate(self.parameters.sizes)]
        return [width for width, a, b in zip(widths, bounds, bounds[1:], strict=False) if start <= a and b <= stop]

    def _to_rows(self, name: str, x: Tensor) -> Tensor:
        widths, n = self._widths(name), len(self.interface.agents)
        if widths is not None:
            return torch.cat([part.view(n, -1) for part in x.split([n * width for width in widths])], 1)
        return x.movedim(-1, 0).contiguous() if x.dim() > 0 and x.shape[-1] == n else x

    def _from_rows(self, name: str, x: Tensor) -> Tensor:
        widths, n = self._widths(name), len(self.interface.agents)
        if widths is not None:
            return torch.cat([part.flatten() for part in x.split(widths, 1)])
        return x.movedim(0, -1).contiguous() if x.dim() > 0 and len(x) == n else x

    def mix_moments(self, moments: Tensor) -> Tensor:
        """Statistics [K, n] of values, mixed as often as their critics will be in this batch, and by the same graphs: statistics that
        agree more slowly than critics would have these averaged in different units."""
        rows = moments.T.contiguous()
        for step in range(self.updates, self.updates + self.algorithm.batch_steps):
            self.exchange.turn_to(step + 1)
            self.exchange.mix(rows)
        self.exchange.turn_to(self.updates)
        return rows.T.contiguous()

    def learn(self, *arguments: Any, **options: Any) -> dict[str, float]:
        """As `AgentInterface.learn`, with metrics of the whole graph, `consensus/distance` and `consensus/error`: see `consensus`; and of
        what this learner sent for the batch, parameters, statistics and rewards: `exchange/bytes`, `exchange/messages`, `exchange/ranks`,
        see `marl_hpc.comm.graphs`. What agents that talk tell each other isn't in it."""
        self.moved = None
        self.wrong = ""
        metrics = super().learn(*arguments, **options)
        metrics |= {f"exchange/{name}": x for name, x in self.exchange.traffic().items()}
        if self.mixed and self.moved is not None:
            metrics |= self.consensus(self.moved)
        if self.wrong:
            raise FloatingPointError(self.wrong)
        return metrics

    @torch.no_grad()
    def consensus(self, moved: Tensor) -> dict[str, float]:
        """`consensus/distance`: how far a batch's first mixing moved what agents mix, relative to that; `consensus/error`: how far it is
        from the mean over agents after the last one, relative to that mean. Of all agents of the graph, on whatever ranks they are: a
        sum over all learners, as long as what an agent mixes, once a batch. It is for people to see; learning doesn't need it."""
        mean = torch.cat([block.sum(0, dtype=torch.float64) for block in self.mixed])
        self.exchange.total_(mean)
        mean /= self.exchange.everyone
        parts = mean.split([block.shape[1] for block in self.mixed])
        apart = torch.stack([squares(block - part.to(block)) for block, part in zip(self.mixed, parts, strict=True)]).sum()
        sums = torch.cat([moved, apart[None]])
        self.exchange.total_(sums)
        size = squares(mean) * self.exchange.everyone
        distance, error = (sums[0] / sums[1].clamp_min(TINY)).sqrt(), (sums[2] / size.clamp_min(TINY)).sqrt()
        return {"consensus/distance": float(distance), "consensus/error": float(error)}


def squares(x: Tensor) -> Tensor:
    """The sum of squares, in float64."""
    return torch.linalg.vector_norm(x, dtype=torch.float64).square()


def encoded(names: Sequence[str]) -> Tensor:
    """Names as bytes."""
    return torch.from_numpy(np.frombuffer("\n".join(names).encode(), np.uint8).copy())


def decoded(names: Tensor) -> list[str]:
    return bytes(names.numpy()).decode().split("\n")
