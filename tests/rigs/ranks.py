"""Ranks of one process group for tests of what learners do among themselves: forked from this warm process, joined by gloo on loopback."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

FORK = multiprocessing.get_context("fork")


class Ranks:
    """So many ranks that run a function; a context, in which nobody outlives it."""

    def __init__(self, function: Callable[..., Any], ranks: int, *arguments: Any, timeout_s: float = 30.0) -> None:
        """Each rank calls function(rank, ranks, *arguments) in a process group of its own."""
        self.folder = tempfile.TemporaryDirectory()
        pipes = [FORK.Pipe(duplex=False) for _ in range(ranks)]
        self.answers = [receiver for receiver, _ in pipes]
        store = str(Path(self.folder.name) / "store")
        self.processes = [
            FORK.Process(target=_rank, args=(function, rank, ranks, store, timeout_s, sender, arguments), daemon=True)
            for rank, (_, sender) in enumerate(pipes)
        ]
        for process, (_, sender) in zip(self.processes, pipes, strict=True):
            process.start()
            sender.close()

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *error: Any) -> None:
        for process in self.processes:
            process.kill()
            process.join()
        self.folder.cleanup()

    def answer(self, rank: int, deadline_s: float = 60.0) -> Any:
        """What a rank's function returned. Raises what it raised as an AssertionError with its traceback."""
        if not self.answers[rank].poll(deadline_s):
            raise AssertionError(f"rank {rank} gave no answer in {deadline_s:g} s")
        said, value = self.answers[rank].recv()
        if said == "raised":
            raise AssertionError(f"rank {rank} raised:\n{value}")
        return value


def together(function: Callable[..., Any], ranks: int, *arguments: Any, deadline_s: float = 60.0) -> list[Any]:
    """What each rank's function returned."""
    with Ranks(function, ranks, *arguments) as started:
        return [started.answer(rank, deadline_s) for rank in range(ranks)]


def _rank(function: Any, rank: int, ranks: int, store: str, timeout_s: float, sender: Any, arguments: Any) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    try:
        timeout = timedelta(seconds=timeout_s)
        dist.init_process_group("gloo", store=dist.FileStore(store, ranks), rank=rank, world_size=ranks, timeout=timeout)
        sender.send(("returned", function(rank, ranks, *arguments)))
        dist.barrier()  # nobody leaves while others still talk to it
    except BaseException:
        sender.send(("raised", traceback.format_exc()))
    finally:
        os._exit(0)
