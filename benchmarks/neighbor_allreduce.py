"""What does mixing with graph neighbors cost, beside a memory copy of the same bytes and beside what others do instead?

    python benchmarks/neighbor_allreduce.py [--ranks 1 2 4] [--most 2000000000]

Agents of a torus or a random geometric graph (reverse Cuthill-McKee order) mix P float32 numbers each by Metropolis weights, over ranks
of one host, by every transport. In the same run, on the same ranks: a copy of the same bytes in memory (the floor), a global all-reduce,
an all-gather and then the mixing, one message an edge for each agent's whole row (a dense neighbor all-gather, BlueFog's algorithm), and
MPI's Neighbor_alltoallv with the same plan. Each number is the median over repetitions of the slowest rank, in milliseconds; all ways
that mix are checked against W X. Sizes beyond --most bytes a run are left out. Written to benchmarks/results/neighbor_allreduce.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from marl_hpc import topology
from marl_hpc.comm.exchange_plan import ExchangePlan
from marl_hpc.comm.neighbors import Mixing
from marl_hpc.comm.transports import AllToAll, Mpi, Nobody, PointToPoint, SharedMemory
from marl_hpc.partition import keep, rcm
from marl_hpc.summary import git_state, versions

ROOT = Path(__file__).parent.parent
AGENTS = (1_000, 10_000, 100_000, 1_000_000)
WIDTHS = (64, 1_000, 10_000)
DENSE = 2_000  # agents of a rank up to which a message an edge is sent: beyond, it takes minutes
REPEATS = 9


def graph_of(name: str, agents: int) -> topology.Graph:
    if name == "torus":
        rows = int(agents**0.5)
        while agents % rows:
            rows -= 1
        return topology.torus(rows, agents // rows)
    graph = topology.random_geometric(agents, 24)
    order = np.argsort(rcm(graph, graph.agents), kind="stable")  # so that blocks of agents are neighborhoods
    adjacency = graph.adjacency[order][:, order].tocsr()
    adjacency.sort_indices()
    return topology.Graph(adjacency)


def median_ms(
    call: Callable[[], Any], between: Callable[[], Any], slowest: Callable[[float], float], repeats: int = REPEATS
) -> float:
    """Of the slowest rank; ranks begin together."""
    call()
    taken = []
    for _ in range(repeats):
        between()
        begun = time.perf_counter()
        call()
        taken.append(slowest(time.perf_counter() - begun))
    return 1e3 * statistics.median(taken)


def values_of(agents: np.ndarray, width: int) -> torch.Tensor:
    """Rows that every rank can compute for whatever agents."""
    x = torch.from_numpy((agents.astype(np.int64) * 2654435761 % 1000003 / 1000003.0).astype(np.float32))
    return x[:, None] * torch.linspace(0.5, 1.5, width) + 0.25


def measure(rank: int, ranks: int, graph: topology.Graph, width: int, communicator: Any) -> dict[str, float]:
    weights = topology.metropolis_hastings(graph)
    plan = ExchangePlan(weights, keep(graph, ranks), rank)
    n = len(plan.agents)
    start = values_of(plan.agents, width)
    some = np.linspace(0, n - 1, min(n, 200)).astype(int)
    expected = torch.from_numpy(
        np.stack([plan.weights[i].data @ values_of(plan.weights[i].indices, width).double().numpy() for i in some])
    )

    def check(name: str, mixed: torch.Tensor) -> None:
        error = (mixed[some].double() - expected).abs().max().item() / expected.abs().max().item()
        if error > 1e-6:
            raise AssertionError(f"{name} differs from W X by {error:.2g}")

    if communicator is not None:
        from mpi4py import MPI

        between, slowest = communicator.Barrier, lambda taken: communicator.allreduce(taken, MPI.MAX)
        transports: dict[str, Any] = {"MPI Neighbor_alltoallv": Mpi(communicator)}
    elif ranks == 1:
        between, slowest, transports = lambda: None, lambda taken: taken, {"none": Nobody()}
    else:
        between = dist.barrier

        def slowest(taken: float) -> float:
            longest = torch.tensor(taken)
            dist.all_reduce(longest, dist.ReduceOp.MAX)
            return float(longest)

        transports = {"shared memory": SharedMemory(), "point-to-point": PointToPoint(), "all-to-all": AllToAll()}
    found: dict[str, float] = {}
    target = torch.empty_like(start)
    found["memory copy"] = median_ms(lambda: target.copy_(start), between, slowest)
    for name, transport in transports.items():
        mixing = Mixing(plan, transport, width)
        mixing.rows.copy_(start)
        check(name, mixing.step())
        found[name] = median_ms(mixing.step, between, slowest)
        if name == "none" or name == "shared memory":
            found["local mixing"] = median_ms(
                lambda mixing=mixing: [mixing._mix(*part) for part in mixing.weights], between, slowest
            )
        del mixing
    if communicator is None and ranks > 1:
        found["all-reduce"] = median_ms(lambda: dist.all_reduce(target), between, slowest)
        sizes = plan.counts.tolist()
        gathered = [torch.empty(size, width) for size in sizes]
        order = torch.from_numpy(plan.agents)

        def all_gather_and_mix() -> torch.Tensor:
            dist.all_gather(gathered, start) if len(set(sizes)) == 1 else [
                dist.broadcast(start if q == rank else gathered[q], q) for q in range(ranks)
            ]
            return torch.mm(whole, torch.cat(gathered))

        whole = plan.matrix(slice(0, n), torch.float32, everybodys=True)
        check("all-gather, then mixing", all_gather_and_mix())
        found["all-gather, then mixing"] = median_ms(all_gather_and_mix, between, slowest)
        if n <= DENSE:
            found["a message an edge"] = median_ms(lambda: message_an_edge(plan, start, order), between, slowest, 5)
    return found


def message_an_edge(plan: ExchangePlan, start: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Every agent sends its whole row along every edge, and adds up what comes: one agent a process, but for those that share one."""
    local = {int(agent): i for i, agent in enumerate(order)}
    out, inbox, works = torch.empty_like(start), {}, []
    reads = plan.weights
    for i in range(len(order)):
        for j in reads.indices[reads.indptr[i] : reads.indptr[i + 1]]:
            if int(j) not in local:
                inbox[i, int(j)] = torch.empty(start.shape[1])
                works.append(dist.irecv(inbox[i, int(j)], int(plan.owners[j]), tag=int(order[i]) * 2048 + int(j) % 2048))
    for i in range(len(order)):  # undirected: who reads i is read by it
        for j in reads.indices[reads.indptr[i] : reads.indptr[i + 1]]:
            if int(j) not in local:
                works.append(dist.isend(start[i], int(plan.owners[j]), tag=int(j) * 2048 + int(order[i]) % 2048))
    for work in works:
        work.wait()
    for i in range(len(order)):
        row = slice(reads.indptr[i], reads.indptr[i + 1])
        rows = [start[local[int(j)]] if int(j) in local else inbox[i, int(j)] for j in reads.indices[row]]
        out[i] = torch.from_numpy(reads.data[row]).float() @ torch.stack(rows)
    return out


def work(rank: int, ranks: int, cases: list[tuple[str, int, int]], communicator: Any, say: Callable[[Any], None]) -> None:
    torch.set_num_threads(1)
    made: dict[tuple[str, int], topology.Graph] = {}
    for name, agents, width in cases:
        if (name, agents) not in made:
            made = {(name, agents): graph_of(name, agents)}
        found = measure(rank, ranks, made[name, agents], width, communicator)
        if rank == 0:
            say((name, agents, width, found))


def forked(ranks: int, cases: list[tuple[str, int, int]], say: Callable[[Any], None]) -> None:
    """The same function on ranks that are processes of their own, joined by gloo on loopback."""
    with tempfile.TemporaryDirectory() as folder:
        lines = Path(folder) / "lines"
        pids = []
        for rank in range(ranks):
            if pid := os.fork():
                pids.append(pid)
                continue
            code = 1
            try:
                os.environ["GLOO_SOCKET_IFNAME"] = "lo"
                if ranks > 1:
                    store = dist.FileStore(f"{folder}/store", ranks)
                    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=timedelta(seconds=300))
                with open(lines, "a") as file:
                    work(rank, ranks, cases, None, lambda line, file=file: print(json.dumps(line), file=file, flush=True))
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        for pid in pids:
            if os.waitpid(pid, 0)[1]:
                raise SystemExit(f"a rank of {ranks} failed")
        for line in lines.read_text().splitlines():
            say(json.loads(line))


def by_mpi(ranks: int, cases: list[tuple[str, int, int]], say: Callable[[Any], None]) -> None:
    """The same function on ranks that mpiexec starts; left out where there is none."""
    mpiexec = Path(sys.executable).parent / "mpiexec"
    command = [
        str(mpiexec) if mpiexec.exists() else "mpiexec",
        "-n",
        str(ranks),
        sys.executable,
        __file__,
        "--mpi",
        json.dumps(cases),
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    except FileNotFoundError:
        print("no mpiexec here: MPI is left out")
        return
    if done.returncode:
        raise SystemExit(done.stderr)
    for line in done.stdout.splitlines():
        if line.startswith("["):
            say(json.loads(line))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--graphs", nargs="+", default=["torus", "random geometric"])
    parser.add_argument("--most", type=float, default=1.1e9, help="bytes of all agents' numbers, at most")
    parser.add_argument("--mpi", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.mpi:
        from mpi4py import MPI

        communicator = MPI.COMM_WORLD
        cases = [tuple(case) for case in json.loads(arguments.mpi)]
        work(communicator.rank, communicator.size, cases, communicator, lambda line: print(json.dumps(line), flush=True))
        return
    cases = [(g, a, p) for g in arguments.graphs for a in AGENTS for p in WIDTHS if 4 * a * p <= arguments.most]
    table: dict[str, dict[str, float]] = {}

    def say(line: Any, ranks: int) -> None:
        name, agents, width, found = line
        entry = table.setdefault(f"{name}, {agents:,} agents, P = {width}, {ranks} ranks", {})
        for key, value in found.items():
            entry[key if key not in entry else f"{key} (beside MPI)"] = value

    for ranks in arguments.ranks:
        forked(ranks, cases, lambda line, ranks=ranks: say(line, ranks))
        if ranks > 1:
            by_mpi(ranks, cases, lambda line, ranks=ranks: say(line, ranks))
        for case, entry in table.items():
            if case.endswith(f" {ranks} ranks"):
                floor = entry["memory copy"]
                print(
                    f"{case}: copy {floor:.3f} ms; "
                    + ", ".join(f"{k} {v / floor:.2f}" for k, v in entry.items() if k != "memory copy")
                )
    record = {
        "question": (__doc__ or "").splitlines()[0], "git": git_state(), "versions": versions(), "cores": os.cpu_count(),
        "unit": "ms, median over repetitions of the slowest rank", "table": table,
    }  # fmt: skip
    (ROOT / "benchmarks" / "results" / "neighbor_allreduce.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
