"""What learners do among themselves: sums over the replicas of an interface, in a process group of their own."""

from __future__ import annotations

import datetime
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from marl_hpc.comm.peers import PeerLost


@contextmanager
def losing(who: str) -> Iterator[None]:
    """Process groups break with RuntimeErrors of many kinds; here they all mean that somebody is gone."""
    try:
        yield
    except RuntimeError as error:
        raise PeerLost(f"{who} is gone: {str(error).splitlines()[0]}") from error


class Alone:
    """The exchange of a learner without replicas."""

    size = 1
    index = 0

    def sum_(self, tensor: torch.Tensor) -> None:
        """Nothing to add."""


class Replicas:
    """Sums over the replicas of one interface, by all-reduce; every replica gets the same bits."""

    def __init__(self, group: Any, index: int, size: int) -> None:
        self.group, self.index, self.size = group, index, size

    def sum_(self, tensor: torch.Tensor) -> None:
        with losing("another replica of this learner"):
            dist.all_reduce(tensor, group=self.group)


def c10d_store(
    host: bool, address: str, publish: Callable[[list[Any]], None], look_up: Callable[[], list[Any]], timeout_s: float
) -> dist.Store:
    """A c10d store for process groups: hosted by one rank, bound to one address only, at a port of the system's choice."""
    timeout = datetime.timedelta(seconds=timeout_s)
    if not host:
        where, port = look_up()
        with losing(f"the rank whose store is at {where}:{port}"):
            return dist.TCPStore(where, port, None, False, timeout)
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((address, 0))
    listener.listen(1024)
    port = listener.getsockname()[1]
    store = dist.TCPStore(address, port, None, True, timeout, wait_for_workers=False, master_listen_fd=listener.detach())
    publish([address, port])
    return store


def join_all(kind: str, store: dist.Store, index: int, count: int, cuda: bool, timeout_s: float) -> None:
    """The process group of all roles of a kind; sub-groups are made from it. gloo on CPUs, NCCL where tensors are on GPUs."""
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    timeout = datetime.timedelta(seconds=timeout_s)
    with losing(f"another {kind}"):
        dist.init_process_group(backend, store=dist.PrefixStore(f"{kind}s", store), rank=index, world_size=count, timeout=timeout)


def leave_all() -> None:
    """Leave the process group that `join_all` made, if any, once nobody needs it any more."""
    if dist.is_initialized():
        dist.destroy_process_group()


class Team:
    """Rollout workers that step the same copies of an environment, each for its part of the agents."""

    def __init__(self, worker: int, workers: int, size: int, timeout_s: float) -> None:
        """This one is `worker` of all `workers`, who come in teams of `size`, one after the other. All workers call it alike."""
        self.index, self.size = worker % size, size
        timeout = datetime.timedelta(seconds=timeout_s)
        with losing("another rollout worker"):
            groups = [dist.new_group(list(range(first, first + size)), timeout=timeout) for first in range(0, workers, size)]
        self.group: Any = groups[worker // size]

    def gather(self, own: torch.Tensor, widths: Sequence[int]) -> list[torch.Tensor]:
        """Everybody's [B, width, …], whose widths all know."""
        most = max(widths)
        sent = own.new_zeros(len(own), most, *own.shape[2:])
        sent[:, : own.shape[1]] = own
        received = [torch.empty_like(sent) for _ in widths]
        with losing("another worker of this one's team"):
            dist.all_gather(received, sent, group=self.group)
        return [x[:, :width] for x, width in zip(received, widths, strict=True)]


def replicas(members: Mapping[str, Sequence[int]], index: int, learners: int, timeout_s: float) -> dict[str, Alone | Replicas]:
    """The exchange of each interface that learner `index` hosts; `members` maps interfaces to learners. All learners call it alike."""
    exchanges: dict[str, Alone | Replicas] = {}
    for name, hosts in members.items():
        if len(hosts) == 1:
            group: Any = None
        elif len(hosts) == learners:
            group = dist.group.WORLD
        else:
            with losing("another learner"):
                group = dist.new_group(list(hosts), timeout=datetime.timedelta(seconds=timeout_s))
        if index in hosts:
            exchanges[name] = Alone() if len(hosts) == 1 else Replicas(group, list(hosts).index(index), len(hosts))
    return exchanges
