"""How rows cross ranks in an exchange with neighbors: point to point, by one all-to-all, through shared memory, or by MPI.

A transport owns the two buffers that mixing goes back and forth between, since where rows lie is its business: each rank has buffers of
its own, [own | halo], or all ranks of a node share two, in which everybody reads everybody's rows in place. `begin` starts to bring in
what neighbors hold and returns what waits for it. A neighbor that is gone or late is an error that names it.
"""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from marl_hpc.comm.exchange_plan import ExchangePlan
from marl_hpc.comm.peers import PeerLost

Finish = Callable[[], None]


class Buffers:
    """Two matrices [rows, P] to mix back and forth between."""

    def __init__(self, pair: Sequence[Tensor], own: slice, places: np.ndarray | None) -> None:
        """This rank's rows are at `own`; `places` [N] says where all agents' rows are, None: as the plan has them."""
        self.pair, self.own, self.places = pair, own, places


class Transport(Protocol):
    name: str

    def buffers(self, plan: ExchangePlan, width: int, dtype: torch.dtype, device: torch.device) -> Buffers: ...

    def begin(self, plan: ExchangePlan, buffers: Buffers, turn: int) -> Finish:
        """Start to bring neighbors' rows into buffer `turn`; the call that is returned waits until they are there."""
        ...


def own_buffers(plan: ExchangePlan, width: int, dtype: torch.dtype, device: torch.device) -> Buffers:
    pair = [torch.zeros(plan.rows, width, dtype=dtype, device=device) for _ in range(2)]
    return Buffers(pair, slice(0, len(plan.agents)), None)


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
    buffers = staticmethod(own_buffers)

    def begin(self, plan: ExchangePlan, buffers: Buffers, turn: int) -> Finish:
        return lambda: None


class PointToPoint:
    """A message to each neighbor rank, by gloo or NCCL."""

    def __init__(self, group: Any = None, deadline_s: float = 60.0) -> None:
        self.group, self.deadline_s = group, deadline_s
        self.name = "point-to-point"
        self.buffers = own_buffers

    def begin(self, plan: ExchangePlan, buffers: Buffers, turn: int) -> Finish:
        source = buffers.pair[turn]
        return self.exchange(
            {q: packed(source, rows) for q, rows in plan.sends.items()}, {q: source[place] for q, place in plan.receives.items()}
        )

    def exchange(self, sent: dict[int, Tensor], received: dict[int, Tensor]) -> Finish:
        """Send each rank its tensor and receive from each into its own."""
        if not sent and not received:
            return lambda: None
        group = self.group
        peer = {q: global_rank(group, q) for q in sent.keys() | received.keys()}
        kinds: list[tuple[str, int]] = [("from", q) for q in received] + [("to", q) for q in sent]
        if next(iter((sent or received).values())).is_cuda:
            ops = [dist.P2POp(dist.irecv, received[q], peer[q], group) for q in received]
            ops += [dist.P2POp(dist.isend, sent[q], peer[q], group) for q in sent]
            works = dist.batch_isend_irecv(ops)  # one operation where they are coalesced
            kinds = kinds if len(works) == len(kinds) else [("with", q) for q in sorted(peer)][: len(works)]
        else:
            works = []
            for (way, q), tensor in zip(kinds, [*received.values(), *sent.values()], strict=True):
                with naming(way, q):
                    works.append((dist.irecv if way == "from" else dist.isend)(tensor, peer[q], group=group))
        timeout = datetime.timedelta(seconds=self.deadline_s)

        def finish() -> None:
            for (way, q), work in zip(kinds, works, strict=True):
                with naming(way, q):
                    assert work is not None
                    work.wait(timeout)
            sent.clear()  # kept until now: messages are sent from where they lie

        return finish


class naming:
    """What goes wrong inside went wrong with that neighbor."""

    def __init__(self, way: str, rank: int) -> None:
        self.way, self.rank = way, rank

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, RuntimeError):
            said = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise PeerLost(f"neighbor rank {self.rank} is gone or late: no rows {self.way} it ({said})") from error


class AllToAll:
    """One all-to-all with uneven splits: less latency among few ranks, but a message to every one of them."""

    def __init__(self, group: Any = None, deadline_s: float = 60.0) -> None:
        self.group, self.deadline_s = group, deadline_s
        self.name = "all-to-all"
        self.buffers = own_buffers

    def begin(self, plan: ExchangePlan, buffers: Buffers, turn: int) -> Finish:
        source = buffers.pair[turn]
        ranks = range(dist.get_world_size(self.group))
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
                raise PeerLost(f"one of the neighbor ranks {plan.neighbors} is gone or late: no rows from it ({said})") from error
            assert sent is not None  # kept until now

        return finish


class SharedMemory:
    """Two buffers that all ranks of one node map: neighbors' rows are read where they lie, and nothing is copied.

    A rank counts its exchanges in a word that its neighbors watch. When all of them have come to this exchange, their rows are in place,
    and they have read what this one is about to overwrite.
    """

    FLAGS = 8  # words of a rank: a cache line

    def __init__(self, group: Any = None, deadline_s: float = 60.0) -> None:
        self.group, self.deadline_s = group, deadline_s
        self.rank, self.ranks = dist.get_rank(group), dist.get_world_size(group)
        self.name = "shared memory"
        flags, self.words = self.map(8 * self.FLAGS * self.ranks)
        self.flags = np.frombuffer(flags, dtype=np.int64).reshape(self.ranks, self.FLAGS)
        self.flags[self.rank, 1] = os.getpid()
        self.count = 0
        dist.barrier(self.group)

    def map(self, size_bytes: int) -> tuple[Any, Tensor]:
        """(memory, the same as bytes [size]) that all ranks share. Raises OSError on all ranks where one can't see it."""
        import mmap

        path = Path("/dev/shm") / f"marl_hpc-{os.getpid()}-{time.monotonic_ns()}"
        if self.rank == 0:
            with open(path, "xb") as file:
                os.posix_fallocate(file.fileno(), 0, size_bytes)
        named: list[Any] = [str(path) if self.rank == 0 else None]
        names = torch.zeros(256, dtype=torch.uint8)
        if self.rank == 0:
            encoded = named[0].encode()
            names[: len(encoded)] = torch.frombuffer(bytearray(encoded), dtype=torch.uint8)
        dist.broadcast(names, global_rank(self.group, 0), group=self.group)
        where = bytes(names.tolist()).rstrip(b"\0").decode()
        memory, seen = None, torch.ones(1, dtype=torch.int32)
        try:
            with open(where, "r+b") as file:
                memory = mmap.mmap(file.fileno(), size_bytes)
        except OSError:
            seen.zero_()
        dist.all_reduce(seen, dist.ReduceOp.MIN, group=self.group)
        if self.rank == 0:
            path.unlink()  # it lives as long as somebody maps it, and no longer
        if memory is None or not seen.item():
            raise OSError("shared memory needs all ranks on one host; use transport=point-to-point")
        return memory, torch.frombuffer(memory, dtype=torch.uint8)

    def buffers(self, plan: ExchangePlan, width: int, dtype: torch.dtype, device: torch.device) -> Buffers:
        total, starts = len(plan.owners), np.concatenate([[0], np.cumsum(plan.counts)])
        size = total * width * torch.empty(0, dtype=dtype).element_size()
        pair = [self.map(max(size, 1))[1][:size].view(dtype).view(total, width) for _ in range(2)]
        own = slice(int(starts[self.rank]), int(starts[self.rank + 1]))
        for buffer in pair:
            buffer[own].zero_()  # where it is first touched is where it lies
        return Buffers(pair, own, starts[plan.owners] + plan.place)

    def begin(self, plan: ExchangePlan, buffers: Buffers, turn: int) -> Finish:
        self.count += 1
        count = self.count
        self.flags[self.rank, 0] = count

        def finish() -> None:
            late = [q for q in plan.neighbors if self.flags[q, 0] < count]
            until, pause = time.monotonic() + self.deadline_s, 0.0
            looks = 0
            while late:
                looks += 1
                if looks > 2000:  # some milliseconds
                    pause = min(1e-3, pause + 1e-5)
                    gone = [q for q in late if not alive(int(self.flags[q, 1]))]
                    if gone:
                        raise PeerLost(f"neighbor rank {gone[0]} is gone before exchange {count}")
                    if time.monotonic() > until:
                        raise PeerLost(
                            f"neighbor rank {late[0]} is late: it came to exchange {self.flags[late[0], 0]} of {count}, and no further in {self.deadline_s:g} s"
                        )
                time.sleep(pause)
                late = [q for q in late if self.flags[q, 0] < count]

        return finish


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


class Mpi:
    """MPI's neighborhood collective, one call an exchange; for ranks that mpiexec started and nobody supervises."""

    def __init__(self, communicator: Any) -> None:
        """`communicator`: mpi4py's, e.g. MPI.COMM_WORLD."""
        self.communicator, self.name = communicator, "MPI neighborhood collective"
        self.buffers = own_buffers
        self.graphs: dict[int, tuple[ExchangePlan, Any]] = {}  # plans are kept, so that no other gets their id

    def begin(self, plan: ExchangePlan, buffers: Buffers, turn: int) -> Finish:
        from mpi4py import MPI

        source = buffers.pair[turn]
        if id(plan) not in self.graphs:
            graph = self.communicator.Create_dist_graph_adjacent(sorted(plan.receives), sorted(plan.sends))
            self.graphs[id(plan)] = plan, graph
        width, n = source.shape[1], len(plan.agents)
        row = MPI.BYTE.Create_contiguous(width * source.element_size()).Commit()
        rows = torch.cat([plan.sends[q] for q in sorted(plan.sends)] or [torch.zeros(0, dtype=torch.int64)])
        sent = source.index_select(0, rows)
        out = [len(plan.sends[q]) for q in sorted(plan.sends)]
        into = [plan.receives[q].stop - plan.receives[q].start for q in sorted(plan.receives)]
        halo = source[n:]
        request = self.graphs[id(plan)][1].Ineighbor_alltoallv(
            [sent.view(torch.uint8).numpy(), out, np.cumsum([0, *out[:-1]])[: len(out)], row],
            [halo.view(torch.uint8).numpy(), into, np.cumsum([0, *into[:-1]])[: len(into)], row],
        )

        def finish() -> None:
            request.Wait()
            row.Free()
            assert sent is not None  # kept until now

        return finish
