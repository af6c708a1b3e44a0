"""Exchanges with neighbors of one host through memory that its ranks share, and over several hosts, messages only between them."""

from __future__ import annotations

import contextlib
import mmap
import os
import platform
import socket
import time
from collections.abc import Sequence
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from marl_hpc.comm.exchange_plan import ExchangePlan, Layout
from marl_hpc.comm.peers import PeerLost
from marl_hpc.comm.transports import (
    PAUSE_S,
    SPINS,
    Buffers,
    Finish,
    PointToPoint,
    check_alike,
    check_all_ranks,
    check_on_cpu,
    global_rank,
    kind_of,
    neighbors_are,
    no_backend,
    packed,
)  # fmt: skip


class SharedMemory:
    """Two buffers that all ranks of one host map: neighbors' rows are read where they lie, and nothing is copied.

    A rank counts its exchanges in a word that its neighbors watch. When all of them have come to this exchange, their rows are in place,
    and they have read what this one is about to overwrite. The words are written after the rows, and x86-64 shows stores to others in the
    order in which they were made. The memory has no name: it is gone when the last rank that maps it is, however that one ended.
    """

    name = "shared memory"
    lost: str | None = None
    WORDS = 8  # of a rank, a cache line: the count, its process, and what its last exchanges were of
    LAST = WORDS - 2

    def __init__(self, group: Any = None, deadline_s: float = 60.0, ranks: Sequence[int] | None = None) -> None:
        """`ranks`: what plans call those of the group, in its order; default: as the group does. Raises OSError, on all ranks, where they
        aren't on one x86-64 host."""
        if platform.machine() not in ("x86_64", "AMD64"):
            raise OSError(
                f"shared memory relies on x86-64's order of stores, and this is {platform.machine()}; take point-to-point"
            )
        self.group, self.deadline_s = group, deadline_s
        self.index, size = dist.get_rank(group), dist.get_world_size(group)
        self.ranks = list(range(size)) if ranks is None else list(ranks)
        self.where = {rank: i for i, rank in enumerate(self.ranks)}
        words = np.frombuffer(self.map(8 * self.WORDS * size), dtype=np.int64).reshape(size, self.WORDS)
        self.counts, self.pids, self.exchanges = words[:, 0], words[:, 1], words[:, 2:]
        self.pids[self.index] = os.getpid()
        self.count = self.made = 0
        try:
            dist.barrier(group)
        except RuntimeError as error:
            raise self._nobody_knows_who(error) from error

    def map(self, size_bytes: int) -> mmap.mmap:
        """Zeros that all ranks share. Raises OSError on all ranks where one can't map them, ValueError where they ask for different sizes."""
        fd, mine = -1, torch.zeros(6, dtype=torch.int64)
        try:
            meet(self.group, self.deadline_s)
            if self.index == 0:
                with contextlib.suppress(OSError, AttributeError):  # AttributeError: no Linux; all ranks hear of it below
                    fd = os.memfd_create("marl_hpc")
                    os.ftruncate(fd, size_bytes)  # pages come where and when they are first touched
                    file = os.fstat(fd)
                    mine = torch.tensor([size_bytes, os.getpid(), fd, file.st_dev, file.st_ino, host()])
            dist.broadcast(mine, global_rank(self.group, 0), group=self.group)
            size, pid, there, device, inode, where = mine.tolist()
            memory = None
            with contextlib.suppress(OSError):
                path = f"/proc/{pid}/fd/{there}"
                seen = os.stat(path)  # looked at before it is opened: in another host's or container's numbering it may be anything
                if (seen.st_dev, seen.st_ino, host()) == (device, inode, where):
                    with open(path, "r+b") as opened:
                        memory = mmap.mmap(opened.fileno(), size)
            agreed = torch.tensor([memory is not None, size == size_bytes or memory is None], dtype=torch.int32)
            dist.all_reduce(agreed, dist.ReduceOp.MIN, group=self.group)
        except RuntimeError as error:
            raise self._nobody_knows_who(error) from error
        finally:
            if fd >= 0:
                os.close(fd)
        if memory is None or not agreed[0]:
            raise OSError("shared memory needs all ranks on one Linux host, able to see each other's /proc; take point-to-point")
        if not agreed[1]:
            raise ValueError(
                f"ranks ask for shared memory of different sizes, this one for {size_bytes} bytes; call exchanges alike on all ranks"
            )
        return memory

    def _nobody_knows_who(self, error: RuntimeError) -> Exception:
        said = str(error).strip().splitlines()[0]
        return no_backend(error) or PeerLost(
            f"one of {len(self.ranks)} ranks is gone or late; memory can't be shared without it ({said})"
        )

    def buffers(self, plan: ExchangePlan, width: int, dtype: torch.dtype, device: torch.device) -> Buffers:
        check_all_ranks(plan, self.index, len(self.ranks), self.name)
        return self.shared(plan, width, dtype, device)

    def shared(self, plan: ExchangePlan, width: int, dtype: torch.dtype, device: torch.device) -> Buffers:
        """Rows of all agents of this host, rank by rank, and after them for each rank those that it gets from others."""
        check_on_cpu(device, self.name)
        far = {q: place.stop - place.start for q, place in plan.receives.items() if q not in self.where}
        mine = torch.cat([kind_of(plan, width, dtype), torch.tensor([sum(far.values())])])
        told = [torch.empty_like(mine) for _ in self.ranks]
        try:
            meet(self.group, self.deadline_s)
            dist.all_gather(told, mine, group=self.group)
        except RuntimeError as error:
            raise self._nobody_knows_who(error) from error
        check_alike(mine[:-1], {q: kind[:-1] for q, kind in zip(self.ranks, told, strict=True)})
        starts = np.cumsum([0, *plan.counts[self.ranks], *(int(kind[-1]) for kind in told)])
        places = np.full(len(plan.owners), -1)
        for start, q in zip(starts, self.ranks, strict=False):
            places[plan.owners == q] = start + plan.place[plan.owners == q]
        receives, start = {}, int(starts[len(self.ranks) + self.index])
        for q, size in far.items():
            receives[q] = slice(start, start + size)
            places[plan.halo[plan.owners[plan.halo] == q]] = np.arange(start, start + size)
            start += size
        rows = int(starts[-1])
        bytes_ = rows * width * dtype.itemsize
        pair = [
            torch.frombuffer(self.map(max(bytes_, 1)), dtype=torch.uint8)[:bytes_].view(dtype).view(rows, width) for _ in range(2)
        ]
        own = slice(int(starts[self.index]), int(starts[self.index + 1]))
        for buffer in pair:
            buffer[own].zero_()  # where it is first touched is where it lies
        self.made += 1
        readers = [q for q in plan.sends if q in self.where]
        layout = Layout(f"host of {self.ranks}", places, rows)
        return Buffers(pair, own, layout, readers=readers, receives=receives, number=self.made)

    def begin(self, plan: ExchangePlan, buffers: Buffers, turn: int) -> Finish:
        self.count += 1
        count, slot, of = self.count, self.count % self.LAST, 2 * buffers.number + turn
        self.exchanges[self.index, slot] = of
        self.counts[self.index] = count
        neighbors = [q for q in plan.neighbors if q in self.where]

        def late() -> list[int]:
            return [q for q in neighbors if self.counts[self.where[q]] < count]

        def finish() -> None:
            until, looks, missing = time.monotonic() + self.deadline_s, 0, late()
            while missing:
                looks += 1
                if looks > SPINS:
                    gone = [q for q in missing if not alive(int(self.pids[self.where[q]]))]
                    missing = late()  # after that: it may have come and ended since
                    gone = [q for q in gone if q in missing]
                    if gone:
                        raise PeerLost(f"{neighbors_are(gone)} gone: {self.came(gone)} of {count}")
                    if missing and time.monotonic() > until:
                        raise PeerLost(
                            f"{neighbors_are(missing)} late: {self.came(missing)} of {count}, and no further in {self.deadline_s:g} s"
                        )
                os.sched_yield() if looks < SPINS else time.sleep(PAUSE_S)
                missing = late()
            for q in neighbors:
                theirs = self.exchanges[self.where[q], slot]
                if theirs != of and self.counts[self.where[q]] < count + self.LAST - 1:  # else it is ahead, and wrote its word anew
                    raise RuntimeError(
                        f"rank {q}'s exchange {count} is of other buffers than this rank's: begin and finish exchanges in one order on all ranks"
                    )

        return finish

    def messages(self, plan: ExchangePlan) -> int:
        return 0

    def came(self, ranks: list[int]) -> str:
        return f"came to exchange {', '.join(str(self.counts[self.where[q]]) for q in sorted(ranks))}"


class Hosts:
    """Shared memory among the ranks of each host, a message to each neighbor rank of another one.

    A host's ranks read each other's rows where they lie; what a rank needs of other hosts comes into rows of its own beside them.
    """

    name = "shared memory inside hosts, point-to-point between them"
    lost: str | None = None

    def __init__(self, hosts: Sequence[int] | None = None, group: Any = None, deadline_s: float = 60.0) -> None:
        """`hosts`: a number for each rank of the group, the same where ranks share memory; default: they find out. All ranks of the group
        must make it alike. Raises OSError, on all ranks, where those of one number can't share memory."""
        rank, size = dist.get_rank(group), dist.get_world_size(group)
        hosts = hosts_of(group, deadline_s) if hosts is None else list(hosts)
        if len(hosts) != size:
            raise ValueError(f"hosts {hosts} must be a number for each of {size} ranks")
        self.rank, self.size, self.hosts = rank, size, hosts
        members: dict[int, list[int]] = {}
        for q, number in enumerate(hosts):
            members.setdefault(number, []).append(q)
        for ranks in members.values():  # all ranks make all groups, in one order
            made = dist.new_group([global_rank(group, q) for q in ranks], timedelta(seconds=deadline_s))
            if rank in ranks:
                inside, own = made, ranks
        self.inside, failed = None, None
        try:
            self.inside = SharedMemory(inside, deadline_s, own)
        except PeerLost:  # an OSError, too
            raise
        except OSError as error:
            failed = error
        shares = torch.tensor(self.inside is not None, dtype=torch.int32)
        try:
            dist.all_reduce(shares, dist.ReduceOp.MIN, group=group)
        except RuntimeError as error:
            raise PeerLost(f"one of {size} ranks is gone or late; nobody knows who shares memory without it ({error})") from error
        if not shares:
            raise OSError(f"ranks of one host can't share memory ({failed or 'said others'}); take point-to-point")
        self.between = PointToPoint(group, deadline_s)

    def buffers(self, plan: ExchangePlan, width: int, dtype: torch.dtype, device: torch.device) -> Buffers:
        check_all_ranks(plan, self.rank, self.size, self.name)
        assert self.inside is not None, "__init__ raises where memory can't be shared"
        self.between.agree(plan, width, dtype, device, [q for q in plan.neighbors if q not in self.inside.where])
        return self.inside.shared(plan, width, dtype, device)

    def begin(self, plan: ExchangePlan, buffers: Buffers, turn: int) -> Finish:
        assert self.inside is not None
        rows, near = buffers.pair[turn], self.inside.where
        own = rows[buffers.own]
        arrived = self.between.exchange(
            {q: packed(own, sent) for q, sent in plan.sends.items() if q not in near},
            {q: rows[place] for q, place in buffers.receives.items()},
        )
        came = self.inside.begin(plan, buffers, turn)

        def finish() -> None:
            came()
            arrived()

        return finish

    def messages(self, plan: ExchangePlan) -> int:
        assert self.inside is not None
        return sum(q not in self.inside.where for q in plan.sends)


def meet(group: Any, deadline_s: float) -> None:
    """Wait until all ranks have come here, before a collective that only ends once they have. Raises RuntimeError naming one that hasn't."""
    if dist.get_backend(group) == "gloo":  # of several backends nothing tells who is late
        dist.monitored_barrier(group, timedelta(seconds=deadline_s))


def hosts_of(group: Any = None, deadline_s: float = 60.0) -> list[int]:
    """The host of each rank of a group, as a number."""
    found = [torch.zeros(1, dtype=torch.int64) for _ in range(dist.get_world_size(group))]
    try:
        meet(group, deadline_s)
        dist.all_gather(found, torch.tensor([host()]), group=group)
    except RuntimeError as error:
        said = str(error).strip().splitlines()[0]
        raise no_backend(error) or PeerLost(
            f"one of {len(found)} ranks is gone or late; nobody knows who is on one host without it ({said})"
        ) from error
    return [int(number) for number in found]


def host() -> int:
    """A number that no other running host has: of its kernel and its name."""
    kernel = Path("/proc/sys/kernel/random/boot_id").read_text()
    return int(sha256(f"{kernel} {socket.gethostname()}".encode()).hexdigest()[:15], 16)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
