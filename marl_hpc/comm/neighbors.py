"""Neighbor-only all-reduce: every agent's row becomes a weighted sum of its own and its graph neighbors'.

    plan = ExchangePlan(topology.metropolis_hastings(topology.torus(100, 100)), owners, rank)
    x = neighbor_allreduce(x, plan)                            # x [n, …]: this rank's agents, in the order of plan.agents

Rows that no rank needs but this one are mixed while neighbors' rows are on their way. Rows are summed in the order of agents, so the
result has the same bits whatever the transport and however many ranks. `Mixing` is the same without a copy in and out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from weakref import proxy

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from marl_hpc.comm import compiled
from marl_hpc.comm.exchange_plan import ExchangePlan
from marl_hpc.comm.peers import PeerLost
from marl_hpc.comm.shared_memory import Hosts, SharedMemory, hosts_of
from marl_hpc.comm.transports import Finish, Nobody, PointToPoint, Transport, check_all_ranks

KERNELS = ("torch", "compiled")
MOST_UNDER_WAY = 64  # exchanges of one plan that nobody has waited for


class Mixing:
    """Rows of this rank's agents in a buffer, and steps that mix them with their neighbors'.

    `rows` [n, P] are read and written in place between steps. A step's result lies in the other buffer: `rows` is another tensor after
    it, and the old one is overwritten by the step after. Where an exchange fails, `rows` are still those of the step before, and nothing
    begins any more by that transport.
    """

    def __init__(
        self, plan: ExchangePlan, transport: Transport, width: int, dtype: torch.dtype = torch.float32, device: Any = "cpu",
        kernel: str = "torch",
    ) -> None:  # fmt: skip
        """`kernel`: what sums rows, PyTorch or one that is `compiled`, which needs a C compiler; all ranks take the same."""
        self.plan, self.transport = plan, transport
        if kernel not in KERNELS:
            raise ValueError(f"unknown kernel {kernel!r}; choose one of: {', '.join(KERNELS)}")
        if kernel == "compiled" and torch.device(device).type != "cpu":
            raise ValueError(f"kernel 'compiled' sums rows on the CPU; got device {device}: take kernel 'torch'")
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"rows are mixed in torch.float32 or torch.float64; got {dtype}, in which rows of weights don't sum to one"
            )
        with torch.inference_mode(False):  # or nobody could write to them outside it
            self.buffers = transport.buffers(plan, width, dtype, torch.device(device))
        self.turn = 0
        n = len(plan.agents)
        # what may be written while neighbors still read: rows of the other buffer, if it is shared, that none of them needs
        early = min([plan.interior, *(int(plan.sends[q][0]) for q in self.buffers.readers)])
        parts = slice(0, early), slice(early, n)
        weights = [plan.matrix(rows, dtype, device, self.buffers.layout) for rows in parts]
        # what mixes the rows of each part, out of each of the two buffers into the other
        self.early, self.late = (
            [self._mixer(kernel, matrix, source, rows) for source in (0, 1)] for rows, matrix in zip(parts, weights, strict=True)
        )
        self.finish_exchange: Finish | None = None

    @property
    def rows(self) -> Tensor:
        """[n, P], in the order of `plan.agents`."""
        return self.buffers.pair[self.turn][self.buffers.own]

    def start(self) -> None:
        """Send what neighbors need, and mix what needs nobody; `rows` must not be written until `finish`."""
        if self.finish_exchange is not None:
            raise RuntimeError("an exchange is under way; finish it before the next")
        if self.transport.lost is not None:
            raise PeerLost(
                f"{self.transport.lost}; ranks may be at different steps: start again with a new transport and new plans"
            )
        try:
            self.finish_exchange = self.transport.begin(self.plan, self.buffers, self.turn)
        except BaseException as error:
            self._give_up(error)
            raise
        self.early[self.turn]()

    def finish(self) -> Tensor:
        """Wait for neighbors' rows and mix the rest; the mixed `rows`. Raises PeerLost naming the rank that is gone or late."""
        if self.finish_exchange is None:
            raise RuntimeError("no exchange is under way; start one first")
        finish, self.finish_exchange = self.finish_exchange, None
        try:
            finish()
        except BaseException as error:
            self._give_up(error)
            raise
        self.late[self.turn]()
        self.turn = 1 - self.turn
        return self.rows

    def step(self, rounds: int = 1) -> Tensor:
        """Mix so many times; the mixed `rows`."""
        for _ in range(rounds):
            self.start()
            self.finish()
        return self.rows

    def _give_up(self, error: BaseException) -> None:
        """Whatever went wrong in an exchange: how far neighbors went meanwhile isn't known."""
        self.transport.lost = str(error) or type(error).__name__

    def _mixer(self, kernel: str, weights: Tensor, turn: int, rows: slice) -> Callable[[], Any]:
        source, target = self.buffers.pair[turn], self.buffers.pair[1 - turn][self.buffers.own][rows]
        if not target.numel():
            return lambda: None
        if kernel == "compiled":
            return compiled.mixer(weights, source, target)
        return partial(torch.addmm, target, weights, source, beta=0, out=target)


class Handle:
    """An exchange that is under way."""

    def __init__(self, mixing: Mixing, plan: ExchangePlan, out: Tensor, into: Tensor, rounds: int) -> None:
        self.mixing, self.plan, self.out, self.into, self.rounds = mixing, plan, out, into, rounds
        self.failed: BaseException | None = None

    def wait(self) -> Tensor:
        """The result, once neighbors' rows have come. Raises as `neighbor_allreduce`, the same again when it is asked again."""
        if self.failed is not None:
            raise self.failed
        try:
            self._finish()
        except BaseException as error:
            self.failed = error
            raise
        return self.out

    def _finish(self) -> None:
        if self.rounds:  # else it was waited for before, and the buffers may be another exchange's
            self.mixing.finish()
            rows = self.mixing.step(self.rounds - 1)
            self.rounds = 0
            self.into.copy_(rows.view_as(self.into))


def neighbor_allreduce(
    x: Tensor, plan: ExchangePlan, *, transport: Transport | None = None, columns: slice | None = None, rounds: int = 1,
    out: Tensor | None = None, async_op: bool = False, kernel: str = "torch",
) -> Any:  # fmt: skip
    """Each agent's row becomes the weighted sum of its own and its graph neighbors', on whatever ranks those are.

    x [n, …]: this rank's agents in the order of `plan.agents`; returns a tensor like it, `out` where that is given (it may be x). With
    `columns`, a slice, only those of x [n, P] are mixed. `rounds`: mix so many times. `async_op`: returns a `Handle` at once, to `wait` for
    the result; x may be written meanwhile. `transport`: see `choose_transport`, which is asked where none is given. `kernel`: what sums
    rows, `torch`, or `compiled`, which is faster and needs a C compiler. All ranks of the plan must call it alike, and wait for handles in
    one order. Buffers of each width and dtype are kept with the plan, one pair for each exchange that is under way. No gradient goes
    through it: see `neighbor_mix`. Raises ValueError where x doesn't fit the plan or ranks' weights or rows don't fit each other's,
    PeerLost naming a neighbor rank that is gone or late.

    Weights that change from round to round have a plan each, made once, and one transport for all of them:

        plans = ExchangePlan.in_turn([uniform(graph) for graph in one_peer_exponential(n)], owners, rank)
        x = neighbor_allreduce(x, plans[t % len(plans)], transport=transport)
    """
    check_rows(x, plan)
    n = len(plan.agents)
    if x.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            "x requires a gradient, which neighbor_allreduce doesn't carry; call it under torch.no_grad() or take neighbor_mix"
        )
    if columns is not None and x.dim() != 2:
        raise ValueError(f"columns are of a matrix [n, P]; got x of shape {tuple(x.shape)}")
    if columns is not None:
        columns = checked_columns(columns, x.shape[1])
    if not isinstance(rounds, int | np.integer) or rounds < 1:
        raise ValueError(f"rounds={rounds} must be a whole number, 1 or more")
    if out is not None and out.requires_grad and torch.is_grad_enabled():
        raise ValueError("out requires a gradient, and is written to; call it under torch.no_grad(), or give out=out.data")
    if out is not None and out.is_inference() and not torch.is_inference_mode_enabled():
        raise ValueError("out was made under torch.inference_mode, and can't be written to outside it; give another tensor")
    if out is not None and (out.shape, out.dtype, out.device) != (x.shape, x.dtype, x.device):
        raise ValueError(
            f"out must be like x, {tuple(x.shape)} of {x.dtype} on {x.device}; got {tuple(out.shape)} of {out.dtype} on {out.device}"
        )
    out = torch.empty_like(x) if out is None else out
    if columns is not None and out is not x:
        out.copy_(x)
    read, into = (x, out) if columns is None else (x[:, columns], out[:, columns])
    mixing = mixing_of(plan, transport, read[:1].numel() if n else 0, x, kernel)
    mixing.rows.copy_(read.reshape(n, -1))
    mixing.start()
    handle = Handle(mixing, plan, out, into, rounds)
    return handle if async_op else handle.wait()


def check_rows(x: Any, plan: ExchangePlan, averaged: bool = True) -> None:
    """Raise ValueError unless x is a tensor with a row for each of this rank's agents, of numbers that can be averaged."""
    if not isinstance(x, Tensor):
        raise ValueError(f"x must be a torch.Tensor; got {type(x).__name__}: torch.from_numpy makes one of an array")
    if x.shape[:1] != (len(plan.agents),):
        raise ValueError(
            f"x has shape {tuple(x.shape)}, but rank {plan.rank} has {len(plan.agents)} agents; the first dimension is theirs"
        )
    if averaged and x.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"x must be of floating-point numbers, float32 or float64, to be averaged; got {x.dtype}")


def checked_columns(columns: Any, width: int) -> slice:
    """
    >>> checked_columns(slice(2, None), 5)
    slice(2, 5, 1)
    """
    if not isinstance(columns, slice):
        raise ValueError(
            f"columns must be a slice, such as slice(0, 2); got {columns!r:.100}: mix x[:, columns] and put it back yourself for any others"
        )
    start, stop, step = columns.indices(width)
    if step < 1 or start >= stop:
        raise ValueError(f"columns {columns} name none of the {width} columns of x, or count backward")
    return slice(start, stop, step)


def mixing_of(plan: ExchangePlan, transport: Transport | None, width: int, like: Tensor, kernel: str = "torch") -> Mixing:
    """A mixing of this plan that is free, made where there is none yet."""
    kind = like.device.type
    if transport is None and kind not in plan.chosen:
        plan.chosen[kind] = choose_transport(plan, like.device)
    by: Transport = plan.chosen[kind] if transport is None else transport
    key = (id(by), width, like.dtype, like.device, kernel)
    waiting = plan.mixings.setdefault(key, [])
    for mixing in waiting:
        if mixing.finish_exchange is None:
            return mixing
    if len(waiting) >= MOST_UNDER_WAY:
        raise RuntimeError(
            f"{len(waiting)} exchanges of one plan are under way, each with buffers of its own: wait for their handles, those of exchanges that "
            "aren't needed, too"
        )
    made = Mixing(plan, by, width, like.dtype, like.device, kernel)
    made.plan = proxy(plan)  # which it is kept with: when that goes, its buffers go, too
    waiting.append(made)
    return made


def choose_transport(plan: ExchangePlan, device: Any = "cpu", group: Any = None, deadline_s: float = 60.0) -> Transport:
    """What is fastest where we measured (`benchmarks/neighbor_allreduce.py`): nothing for one rank; on GPUs NCCL; shared memory among the
    ranks of a host, and a message to each neighbor rank of another. Never an all-to-all, which can't name a rank that is gone. All ranks of
    the group must call it alike."""
    if len(plan.counts) == 1:
        return Nobody()
    if torch.device(device).type == "cuda":
        return PointToPoint(group, deadline_s, device)
    check_all_ranks(plan, dist.get_rank(group), dist.get_world_size(group), SharedMemory.name)
    hosts = hosts_of(group, deadline_s)
    try:
        if len(set(hosts)) == 1:
            return SharedMemory(group, deadline_s)
        if len(set(hosts)) < len(hosts):
            return Hosts(hosts, group, deadline_s)
    except PeerLost:  # an OSError, too
        raise
    except OSError:
        pass  # on all ranks alike
    return PointToPoint(group, deadline_s)


def push_sum(x: Tensor, mass: Tensor, plan: ExchangePlan, *, transport: Transport | None = None) -> tuple[Tensor, Tensor]:
    """One round of push-sum over a directed graph: (x, mass) mixed by column-stochastic weights; x / mass tends to the mean of all agents.

    x [n, …], mass [n] (ones at first), both of this rank's agents. Source: Kempe et al. 2003; Nedić and Olshevsky 2015, eq. 4.
    Raises as `neighbor_allreduce`, ValueError where mass doesn't fit x.
    """
    check_rows(x, plan)
    if mass.shape != (len(x),) or mass.dtype != x.dtype:
        raise ValueError(
            f"mass must be one number for each agent, of x's type: [{len(x)}] of {x.dtype}; got {tuple(mass.shape)} of {mass.dtype}"
        )
    both = torch.cat([x.reshape(len(x), -1), mass[:, None]], 1)
    mixed = neighbor_allreduce(both, plan, transport=transport)
    return mixed[:, :-1].reshape(x.shape), mixed[:, -1]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, plan: ExchangePlan, transport: PointToPoint) -> Tensor:
        context.plan, context.transport = plan, transport
        rows = x.new_empty(plan.rows, *x.shape[1:])
        n = len(plan.agents)
        rows[:n] = x
        transport.exchange(
            {q: x.index_select(0, own.to(x.device)) for q, own in plan.sends.items()},
            {q: rows[place] for q, place in plan.receives.items()},
        )()
        return rows

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Any:
        plan, (gradient,) = context.plan, gradients
        gradient = gradient.contiguous()
        back = {q: gradient.new_empty(len(own), *gradient.shape[1:]) for q, own in plan.sends.items()}
        context.transport.exchange({q: gradient[place] for q, place in plan.receives.items()}, dict(back))()
        total = gradient[: len(plan.agents)].clone()
        for q in sorted(back):
            total.index_add_(0, plan.sends[q].to(total.device), back[q])
        return total, None, None


def neighbor_gather(x: Tensor, plan: ExchangePlan, transport: PointToPoint | Nobody) -> Tensor:
    """x [n, …] of this rank's agents and what their neighbors on other ranks hold: [n + halo, …], in the order of the plan's buffer.

    With autograd: the gradient of what others read comes back to this rank and is added. All ranks must call it, and its backward pass,
    alike. Raises ValueError where x or the transport doesn't fit the plan or ranks' plans don't fit each other, PeerLost naming a rank
    that is gone or late.
    """
    check_rows(x, plan, averaged=False)
    if isinstance(transport, Nobody):
        if plan.neighbors:
            raise ValueError(
                f"the plan has neighbor ranks {plan.neighbors}, whom transport Nobody doesn't reach; take PointToPoint"
            )
        return x
    if not isinstance(transport, PointToPoint):
        raise ValueError(
            f"gradients travel point to point; got transport {getattr(transport, 'name', transport)!r}: make PointToPoint(group), or Nobody() for "
            "one rank"
        )
    transport.agree_once(plan, x)
    return _Gather.apply(x, plan, transport)  # type: ignore[return-value]


def neighbor_mix(x: Tensor, plan: ExchangePlan, transport: PointToPoint | Nobody) -> Tensor:
    """`neighbor_allreduce` with autograd: x [n, P] to [n, P], gradients through the exchange. Raises as `neighbor_gather`."""
    check_rows(x, plan)
    if x.dim() != 2:
        raise ValueError(f"x must be a matrix [n, P]; got shape {tuple(x.shape)}: x.flatten(1) makes one")
    rows = neighbor_gather(x, plan, transport)
    return torch.sparse.mm(plan.matrix(slice(0, len(plan.agents)), x.dtype, x.device), rows)


def hierarchical(x: Tensor, plans: Sequence[ExchangePlan], *, transports: Sequence[Transport | None] | None = None) -> Tensor:
    """Mix by several plans, one after another: inside nodes, then between them, each by its own transport.

    x [n, …] in the order of `plan.agents`, which `ExchangePlan.in_turn` makes the same for all of them; returns a tensor like it. Raises
    ValueError where it isn't the same.
    """
    if transports is not None and len(transports) != len(plans):
        raise ValueError(f"{len(plans)} plans need a transport each, or none; got {len(transports)} transports")
    for plan in plans[1:]:
        if not np.array_equal(plan.agents, plans[0].agents):
            raise ValueError("plans that are used in turn order their rows differently; make them together by ExchangePlan.in_turn")
    for plan, transport in zip(plans, transports or [None] * len(plans), strict=True):
        x = neighbor_allreduce(x, plan, transport=transport)
    return x
