"""How rows cross ranks in an exchange with neighbors: point to point, by one all-to-all, or by MPI; see `shared_memory` for the rest.

A transport owns the two buffers that mixing goes back and forth between, since where rows lie is its business: each rank has buffers of
its own, [own | halo], or all ranks of a node share two, in which everybody reads everybody's rows in place. `begin` starts to bring in
what neighbors hold and returns what waits for it. A neighbor that is gone or late is an error that names it, and the end of that
transport.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol
from weakref import WeakSet

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from marl_hpc.comm.exchange_plan import ExchangePlan, Layout
from marl_hpc.comm.peers import PeerLost
from marl_hpc.config import ConfigError

Finish = Callable[[], None]
SPINS, PAUSE_S = 2000, 1e-4  # look so often, for some milliseconds, before the core is given to others


class Buffers:
    """Two matrices [rows, P] to mix back and forth between."""

    def __init__(
        self,
        pair: Sequence[Tensor],
        own: slice,
        layout: Layout | None = None,
        *,
        readers: Sequence[int] = (),
        receives: Mapping[int, slice] | None = None,
        number: int = 0,
        graph: Any = None,
    ) -> None:
        """This rank's rows are at `own`. `layout`: where all that it reads is; default: as in its plan. `readers`: ranks that read its rows
        where they lie. `receives`: where the rows of other hosts' ranks go, if some share it. `number`: the same for buffers that ranks
        share. `graph`: MPI's communicator for them."""
        self.pair, self.own, self.layout, self.readers, self.number, self.graph = pair, own, layout, readers, number, graph
        self.receives = receives or {}


class Transport(Protocol):
    name: str
    lost: str | None  # why an exchange failed; none begins after it, since ranks may be at different steps

    def buffers(self, plan: ExchangePlan, width: int, dtype: torch.dtype, device: torch.device) -> Buffers: ...

    def begin(self, plan: ExchangePlan, buffers: Buffers, turn: int) -> Finish:
        """Start to bring neighbors' rows into buffer `turn`; the call that is returned waits until they are there."""
        ...

    def messages(self, plan: ExchangePlan) -> int:
        """That a rank sends in one exchange."""
        ...


def own_buffers(plan: ExchangePlan, width: int, dtype: torch.dtype, device: torch.device) -> Buffers:
    pair = [torch.zeros(plan.rows, width, dtype=dtype, device=device) for _ in range(2)]
    return Buffers(pair, slice(0, len(plan.agents)))


def kind_of(plan: ExchangePlan, width: int, dtype: torch.dtype) -> Tensor:
    """[3]: what ranks have to agree on before they exchange; `check_alike` compares."""
    return torch.tensor([plan.digest, width, dtype.itemsize])


def check_alike(mine: Tensor, others: Mapping[int, Tensor]) -> None:
    """Raise ValueError naming a rank whose `kind_of` exchange isn't this rank's."""
    (digest, width, size), wrong = mine.tolist(), []
    for q, other in others.items():
        if int(other[0]) != digest:
            wrong.append(
                f"rank {q}'s plan is of other weights or owners than this rank's; make them alike, random graphs of one seed"
            )
        elif other.tolist() != mine.tolist():
            wrong.append(
                f"rank {q} exchanges rows of {int(other[1])} numbers of {8 * int(other[2])} bits, this rank of {width} of {8 * size}; call "
                "exchanges alike on all ranks"
            )
    if wrong:
        raise ValueError("; ".join(wrong))


def no_backend(error: RuntimeError) -> ValueError | None:
    """What to do where a group has none for the CPU; None for any other error."""
    if "backend" not in str(error).lower():
        return None
    return ValueError(
        f"rows on the CPU are exchanged by gloo, which this group doesn't have; init_process_group('cpu:gloo,cuda:nccl'), or give a group "
        f"that has it ({str(error).splitlines()[0]})"
    )


def global_rank(group: Any, rank: int) -> int:
    """Of a rank of this group; None: of all ranks."""
    return rank if group is None else dist.get_global_rank(group, rank)


def packed(source: Tensor, rows: Tensor) -> Tensor:
    """Rows of a buffer to send: where they lie, if they lie together."""
    first, last = int(rows[0]), int(rows[-1])
    if last - first + 1 == len(rows):
        return source[first : last + 1]
    return source.index_select(0, rows.to(source.device))


class Nobody:
    """One rank has all agents."""

    name = "none"
    lost: str | None = None

    def buffers(self, plan: ExchangePlan, width: int, dtype: torch.dtype, device: torch.device) -> Buffers:
        check_all_ranks(plan, 0, 1, self.name)
        return own_buffers(plan, width, dtype, device)

    def begin(self, plan: ExchangePlan, buffers: Buffers, turn: int) -> Finish:
        return lambda: None

    def messages(self, plan: ExchangePlan) -> int:
        return 0


class PointToPoint:
    """A message to each neighbor rank, by gloo or NCCL."""

    name = "point-to-point"
    lost: str | None = None

    def __init__(self, group: Any = None, deadline_s: float = 60.0, device: Any = "cpu") -> None:
        """`device`: where rows are. On a GPU all ranks of the group must make it alike: a first message between two of them, while others
        send none, isn't allowed by NCCL."""
        self.group, self.deadline_s = group, deadline_s
        self.gathered: WeakSet[ExchangePlan] = WeakSet()  # plans that neighbors have been found to have alike
        if torch.device(device).type == "cuda":
            dist.all_reduce(torch.zeros(1, device=device), group=group)

    def buffers(self, plan: ExchangePlan, width: int, dtype: torch.dtype, device: torch.device) -> Buffers:
        self.agree(plan, width, dtype, device, plan.neighbors)
        return own_buffers(plan, width, dtype, device)

    def agree(self, plan: ExchangePlan, width: int, dtype: torch.dtype, device: torch.device, ranks: Iterable[int]) -> None:
        """Tell these neighbor ranks what this one is about to exchange, which they do alike. Raises ValueError where it isn't the same, or the
        plan isn't this rank's."""
        if plan.neighbors and (plan.rank != dist.get_rank(self.group) or plan.neighbors[-1] >= dist.get_world_size(self.group)):
            raise ValueError(
                f"the plan is rank {plan.rank}'s, with neighbor ranks {plan.neighbors}, but this is rank {dist.get_rank(self.group)} of "
                f"{dist.get_world_size(self.group)}; number owners as the group does"
            )
        mine = kind_of(plan, width, dtype).to(device)
        others = {q: torch.empty_like(mine) for q in ranks}
        if self.lost is None:  # else the exchange itself says why there can't be any
            try:
                self.exchange(dict.fromkeys(others, mine), dict(others))()
            except PeerLost as error:
                self.lost = str(error)
                raise
            check_alike(mine, others)

    def agree_once(self, plan: ExchangePlan, x: Tensor) -> None:
        """Before a plan's first exchange of whatever width."""
        if plan not in self.gathered:
            self.agree(plan, 0, x.dtype, x.device, plan.neighbors)
            self.gathered.add(plan)

    def begin(self, plan: ExchangePlan, buffers: Buffers, turn: int) -> Finish:
        source = buffers.pair[turn]
        return self.exchange(
            {q: packed(source, rows) for q, rows in plan.sends.items()}, {q: source[place] for q, place in plan.receives.items()}
        )

    def messages(self, plan: ExchangePlan) -> int:
        return len(plan.sends)

    def exchange(self, sent: dict[int, Tensor], received: dict[int, Tensor]) -> Finish:
        """Send each rank its tensor and receive from each into its own."""
        if not sent and not received:
            return lambda: None
        group = self.group
        peer = {q: global_rank(group, q) for q in sent.keys() | received.keys()}
        whose, works = [*received, *sent], []
        failed: dict[int, RuntimeError] = {}
        if next(iter((sent or received).values())).is_cuda:
            ops = [dist.P2POp(dist.irecv, received[q], peer[q], group) for q in received]
            ops += [dist.P2POp(dist.isend, sent[q], peer[q], group) for q in sent]
            try:
                works = dist.batch_isend_irecv(ops)
            except RuntimeError as error:
                raise lost(dict.fromkeys(peer, error)) from error
            if len(works) != len(whose):  # coalesced to one operation, which can't tell who is gone
                works = works[-1:] * len(whose)
        else:
            for q, tensor in [*received.items(), *sent.items()]:
                try:
                    start = dist.irecv if len(works) < len(received) else dist.isend
                    works.append(start(tensor, peer[q], group=group))
                except RuntimeError as error:
                    works.append(None)
                    failed.setdefault(q, error)
            if failed:
                raise lost(failed)

        def finish() -> None:
            until = time.monotonic() + self.deadline_s  # for all of them together
            for q, work in zip(whose, works, strict=True):
                try:
                    assert work is not None
                    work.wait(datetime.timedelta(seconds=max(1e-3, until - time.monotonic())))
                except RuntimeError as error:
                    if not failed:
                        # whom this rank waited for first may have left only because another one died: see who else is gone
                        until = time.monotonic() + 0.1
                    if not failed or late(next(iter(failed.values()))) or not late(error):
                        failed.setdefault(q, error)
            if failed:
                raise lost(failed)
            sent.clear()  # kept until now: messages are sent from where they lie

        return finish


def late(error: RuntimeError) -> bool:
    """Whether gloo waited in vain, rather than lost the connection."""
    return "timed out" in str(error).lower()


def lost(failed: dict[int, RuntimeError]) -> PeerLost:
    said = str(next(iter(failed.values()))) or "no reason given"
    return PeerLost(f"{neighbors_are(list(failed))} gone or late: no rows were exchanged ({said.splitlines()[0]})")


def neighbors_are(ranks: list[int]) -> str:
    """
    >>> neighbors_are([1]), neighbors_are([2, 0])
    ('neighbor rank 1 is', 'neighbor ranks 0, 2 are')
    """
    return f"neighbor rank {ranks[0]} is" if len(ranks) == 1 else f"neighbor ranks {', '.join(map(str, sorted(ranks)))} are"


class AllToAll:
    """One all-to-all with uneven splits: less latency among few ranks, but a message to every one of them."""

    name = "all-to-all"
    lost: str | None = None

    def __init__(self, group: Any = None, deadline_s: float = 60.0) -> None:
        self.group, self.deadline_s = group, deadline_s

    def buffers(self, plan: ExchangePlan, width: int, dtype: torch.dtype, device: torch.device) -> Buffers:
        check_all_ranks(plan, dist.get_rank(self.group), dist.get_world_size(self.group), self.name)
        mine = kind_of(plan, width, dtype).to(device)
        others = [torch.empty_like(mine) for _ in plan.counts]
        try:
            dist.all_gather(others, mine, group=self.group)
        except RuntimeError as error:
            raise no_backend(error) or PeerLost(
                f"one of {len(others)} ranks is gone or late ({str(error).splitlines()[0]})"
            ) from error
        check_alike(mine, dict(enumerate(others)))
        return own_buffers(plan, width, dtype, device)

    def begin(self, plan: ExchangePlan, buffers: Buffers, turn: int) -> Finish:
        source = buffers.pair[turn]
        ranks = range(len(plan.counts))
        out = [len(plan.sends.get(q, ())) for q in ranks]
        into = [plan.receives[q].stop - plan.receives[q].start if q in plan.receives else 0 for q in ranks]
        rows = torch.cat([plan.sends[q] for q in ranks if q in plan.sends] or [torch.zeros(0, dtype=torch.int64)])
        sent = source.index_select(0, rows.to(source.device))
        work = dist.all_to_all_single(source[len(plan.agents) :], sent, into, out, group=self.group, async_op=True)

        def finish() -> None:
            try:
                assert work is not None
                work.wait(datetime.timedelta(seconds=self.deadline_s))
            except RuntimeError as error:
                said = str(error).splitlines()[0]
                others = [q for q in ranks if q != plan.rank]
                raise PeerLost(
                    f"one of the ranks {others} is gone or late: neighbor ranks are {plan.neighbors}, but an all-to-all needs them all ({said})"
                ) from error
            assert sent is not None  # kept until now

        return finish

    def messages(self, plan: ExchangePlan) -> int:
        return len(plan.counts) - 1  # empty ones, too


class Mpi:
    """MPI's neighborhood collective, one call an exchange; for programs that mpiexec starts and nobody supervises.

    It needs no torch.distributed. Roles of a training run can use it where cluster.supervise=false: others are children of processes that
    may have called MPI_Init, after which a child can't. A rank that dies is mpiexec's to notice: by MPI's default it ends the whole job. One that stands still is an error
    at the deadline, which can't say which of the neighbors it is where there are several.
    """

    name = "MPI neighborhood collective"
    lost: str | None = None

    def __init__(self, communicator: Any = None, deadline_s: float = 60.0) -> None:
        """`communicator`: mpi4py's, by default MPI.COMM_WORLD. Raises ConfigError where mpi4py isn't installed, RuntimeError where MPI isn't
        initialized or is finalized."""
        try:
            from mpi4py import MPI
        except (ImportError, RuntimeError) as error:  # RuntimeError: no MPI library
            raise ConfigError(
                f"the MPI transport needs mpi4py and an MPI library: pip install 'marl_hpc[mpi]' ({error})"
            ) from error
        if not MPI.Is_initialized() or MPI.Is_finalized():
            raise RuntimeError(
                "MPI isn't initialized, or is finalized already: start the program by `mpiexec -n RANKS python PROGRAM`, let mpi4py initialize "
                "it (mpi4py.rc.initialize) and make the transport before MPI.Finalize"
            )
        self.communicator = MPI.COMM_WORLD if communicator is None else communicator
        self.rank, self.ranks, self.deadline_s = self.communicator.Get_rank(), self.communicator.Get_size(), deadline_s
        self.graphs: dict[Any, Any] = {}  # by all ranks' neighbors; plans that have the same share one, since MPI has some 2,000
        self.unfinished: list[Any] = []  # what MPI may still write to after an exchange was given up

    def buffers(self, plan: ExchangePlan, width: int, dtype: torch.dtype, device: torch.device) -> Buffers:
        if len(plan.counts) > self.ranks == 1:
            raise ValueError(
                f"the plan spreads agents over {len(plan.counts)} ranks, but MPI has this process alone; start it by "
                f"`mpiexec -n {len(plan.counts)} python PROGRAM`, of the MPI that mpi4py is built for"
            )
        check_all_ranks(plan, self.rank, self.ranks, self.name)
        check_on_cpu(device, self.name)
        neighbors = tuple(sorted(plan.receives)), tuple(sorted(plan.sends))
        told = self.communicator.allgather((kind_of(plan, width, dtype), neighbors))
        check_alike(told[self.rank][0], {q: kind for q, (kind, _) in enumerate(told)})
        key = tuple(of for _, of in told)
        if key not in self.graphs:
            self.graphs[key] = self.communicator.Create_dist_graph_adjacent(*neighbors)
        buffers = own_buffers(plan, width, dtype, device)
        buffers.graph = self.graphs[key]
        return buffers

    def begin(self, plan: ExchangePlan, buffers: Buffers, turn: int) -> Finish:
        from mpi4py import MPI

        source = buffers.pair[turn]
        width, n = source.shape[1], len(plan.agents)
        row = MPI.BYTE.Create_contiguous(width * source.element_size()).Commit()
        rows = torch.cat([plan.sends[q] for q in sorted(plan.sends)] or [torch.zeros(0, dtype=torch.int64)])
        sent = source.index_select(0, rows)
        out = [len(plan.sends[q]) for q in sorted(plan.sends)]
        into = [plan.receives[q].stop - plan.receives[q].start for q in sorted(plan.receives)]
        halo = source[n:]
        request = buffers.graph.Ineighbor_alltoallv(
            [sent.view(torch.uint8).numpy(), out, np.cumsum([0, *out[:-1]])[: len(out)], row],
            [halo.view(torch.uint8).numpy(), into, np.cumsum([0, *into[:-1]])[: len(into)], row],
        )

        def finish() -> None:
            until, looks = time.monotonic() + self.deadline_s, 0
            while not request.Test():
                looks += 1
                if looks > SPINS:
                    if time.monotonic() > until:
                        self.unfinished.append((request, row, sent, source))
                        raise PeerLost(
                            f"one of the neighbor ranks {plan.neighbors} is late: no rows from it by MPI in {self.deadline_s:g} s"
                        )
                    time.sleep(PAUSE_S)
            row.Free()

        return finish

    def messages(self, plan: ExchangePlan) -> int:
        return len(plan.sends)


def communicator_of(ranks: Sequence[int]) -> Any:
    """MPI's communicator of these ranks of all, in this order. They all ask alike, and nobody else has to."""
    from mpi4py import MPI

    return MPI.COMM_WORLD.Create_group(MPI.COMM_WORLD.Get_group().Incl(list(ranks)))


def check_all_ranks(plan: ExchangePlan, rank: int, ranks: int, name: str) -> None:
    """Raise ValueError unless the plan is this rank's, and one of all ranks of the group."""
    if plan.rank != rank or len(plan.counts) != ranks or not plan.counts.all():
        raise ValueError(
            f"this is rank {rank} of {ranks}, and the plan is rank {plan.rank}'s for {int((plan.counts > 0).sum())} ranks with agents, but "
            f"transport {name!r} is for all ranks of its group: start as many, number owners as the group does, and give each rank agents"
        )


def check_on_cpu(device: torch.device, name: str) -> None:
    if device.type != "cpu":
        raise ValueError(f"{name} mixes rows in the memory of the host; got device {device}: take PointToPoint with an NCCL group")
