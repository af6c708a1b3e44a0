"""One rank of an exchange with neighbors under mpiexec, without torch.distributed: `exchanging_by_mpi.py FOLDER FAULT`.

Every rank mixes in two widths and by two plans, and writes its agents and their rows to FOLDER/mixed{rank}.npz. With FAULT `stop` or
`die` rank 1 stands still or is killed before the second step, and the others write what they were told to FOLDER/said{rank}.
"""

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch

from marl_hpc.comm.exchange_plan import ExchangePlan
from marl_hpc.comm.neighbors import Mixing, neighbor_allreduce
from marl_hpc.comm.peers import PeerLost
from marl_hpc.comm.transports import Mpi
from rigs.graphs import random_weights

AGENTS, STEPS, WIDTHS = 60, 5, (33, 4)


def values(width: int) -> torch.Tensor:
    return torch.randn(AGENTS, width, generator=torch.Generator().manual_seed(1))


def weights_in_turn() -> list:
    return [random_weights(AGENTS, 6), random_weights(AGENTS, 5, seed=1, directed=True)]


def owners_of(ranks: int) -> np.ndarray:
    return np.random.default_rng(0).permutation(np.arange(AGENTS) % ranks)


def mixed(plans: list[ExchangePlan], transport: object) -> dict[str, np.ndarray]:
    """This rank's rows after some steps, by width."""
    found = {}
    for width in WIDTHS:
        x = values(width)[plans[0].agents]
        for step in range(STEPS):
            x = neighbor_allreduce(x, plans[step % len(plans)], transport=transport)
        found[f"width{width}"] = x.numpy()
    return found


def main() -> None:
    folder, fault = Path(sys.argv[1]), sys.argv[2]
    transport = Mpi(deadline_s=1.0 if fault == "stop" else 60.0)
    rank, ranks = transport.rank, transport.ranks
    plans = ExchangePlan.in_turn(weights_in_turn(), owners_of(ranks), rank)
    if fault == "none":
        np.savez(folder / f"mixed{rank}.npz", agents=plans[0].agents, **mixed(plans, transport))
        return
    mixing = Mixing(plans[0], transport, 3)
    mixing.step()
    if rank == 1:
        (folder / "pid1").write_text(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGSTOP if fault == "stop" else signal.SIGKILL)
    begun = time.monotonic()
    try:
        mixing.step()
    except PeerLost as error:
        (folder / f"said{rank}").write_text(f"{time.monotonic() - begun} {error}")
        os._exit(3)  # without MPI_Finalize, which would wait for rank 1
    (folder / f"said{rank}").write_text("0 nothing was noticed")


if __name__ == "__main__":
    main()
