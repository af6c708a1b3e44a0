"""One rank of an exchange with neighbors, by the transport that is chosen: `exchanging.py RANK RANKS ADDRESS PORT FOLDER STEPS WIDTH`.

Says through files in FOLDER when it is ready and done, and goes on when it finds `go` there: nothing else is on the wire meanwhile.
"""

import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from marl_hpc import topology
from marl_hpc.comm.exchange_plan import ExchangePlan
from marl_hpc.comm.neighbors import Mixing, choose_transport
from marl_hpc.partition import keep

ROWS, COLUMNS = 12, 5  # a grid that is cut into strips: a rank's neighbors are those before and after it


def main() -> None:
    rank, ranks, address, port, folder, steps, width = sys.argv[1:]
    store = dist.TCPStore(address, int(port), int(ranks), rank == "0", timedelta(seconds=60))
    dist.init_process_group("gloo", store=store, rank=int(rank), world_size=int(ranks), timeout=timedelta(seconds=60))
    graph = topology.grid(ROWS, COLUMNS)
    plan = ExchangePlan(topology.metropolis_hastings(graph), keep(graph, int(ranks)), int(rank))
    transport = choose_transport(plan)
    mixing = Mixing(plan, transport, int(width))
    mixing.rows.copy_(torch.from_numpy(plan.agents)[:, None].expand_as(mixing.rows))
    mixing.step()
    (Path(folder) / f"ready{rank}").write_text(transport.name)
    while not (Path(folder) / "go").exists():
        time.sleep(0.01)
    for _ in range(int(steps)):
        mixing.step()
    assert abs(float(mixing.rows.mean()) - plan.agents.mean()) < plan.agents.size  # it did mix
    (Path(folder) / f"done{rank}").touch()
    while not (Path(folder) / "leave").exists():
        time.sleep(0.01)


if __name__ == "__main__":
    main()
