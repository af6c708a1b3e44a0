"""A rank under mpiexec without anything else of ours: mixes with its neighbors by MPI and prints a hash of everybody's rows.

`mixing_by_mpi.py [DIES]`: rank DIES ends itself by SIGKILL after two exchanges.
"""

import hashlib
import os
import signal
import sys

import numpy as np
import torch
from mpi4py import MPI

from marl_hpc import topology
from marl_hpc.comm.exchange_plan import ExchangePlan
from marl_hpc.comm.neighbors import Mixing, neighbor_allreduce
from marl_hpc.comm.transports import Mpi, Nobody

ROWS, COLUMNS, WIDTH, STEPS = 9, 7, 13, 6


def main() -> None:
    world = MPI.COMM_WORLD
    torch.set_num_threads(1)
    agents = ROWS * COLUMNS
    weights = topology.metropolis_hastings(topology.torus(ROWS, COLUMNS))
    owners = np.random.default_rng(4).permutation(np.arange(agents) % world.size)
    plan = ExchangePlan(weights, owners, world.rank)
    transport = Mpi(world) if world.size > 1 else Nobody()
    start = torch.randn(agents, WIDTH, generator=torch.Generator().manual_seed(1))
    mixing = Mixing(plan, transport, WIDTH)
    mixing.rows.copy_(start[plan.agents])
    x = start[plan.agents]
    for step in range(STEPS):
        x = neighbor_allreduce(x, plan, transport=transport)
        assert torch.equal(mixing.step(), x)
        if step == 1 and sys.argv[1:] == [str(world.rank)]:
            os.kill(os.getpid(), signal.SIGKILL)
    whole = np.zeros((agents, WIDTH), np.float32)
    for own, rows in world.allgather((plan.agents, x.numpy())):
        whole[own] = rows
    dense = np.linalg.matrix_power(weights.toarray(), STEPS) @ start.double().numpy()
    assert np.abs(whole - dense).max() <= 1e-6 * np.abs(dense).max()
    if world.rank == 0:
        print(hashlib.sha256(whole.tobytes()).hexdigest(), flush=True)


if __name__ == "__main__":
    main()
