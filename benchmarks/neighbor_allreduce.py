"""What does mixing with graph neighbors cost, beside a memory copy of the same bytes and beside what others do instead?

    python benchmarks/neighbor_allreduce.py [--ranks 1 2 4] [--agents 1000 10000 …] [--widths 64 1000 …] [--most 1.1e9]

Agents of a torus or a random geometric graph (reverse Cuthill-McKee order) mix P float32 numbers each by Metropolis weights, over ranks
of one host, by every transport. In the same run, on the same ranks: a copy of the same bytes in memory (the floor), a global all-reduce,
an all-gather and then the mixing, one message an edge for an agent's whole row into a place of its own (a dense neighbor all-gather,
BlueFog's algorithm), and MPI's Neighbor_alltoallv with the same plan. Rows are summed by the compiled kernel, and in shared memory by
PyTorch's sparse product as well. A sample is as many steps one after another, between two barriers, as take some milliseconds; times are
medians over samples of the slowest rank, a step, in milliseconds, with the least and the most. Memory is what all ranks hold more after a
step than before they had rows, in parameters and halo; all ways that mix are checked against W X. Where rows are cold, as many sets of
them are mixed in turn as no cache holds, so that small systems have no advantage but their size. Sizes beyond --most bytes are left out. At the end stands a table of what is claimed of
it, in how many cases it held and how far the worst was off. Written to benchmarks/results/neighbor_allreduce.json, or to --out.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
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
from marl_hpc.comm.shared_memory import SharedMemory
from marl_hpc.comm.transports import AllToAll, Mpi, Nobody, PointToPoint
from marl_hpc.partition import keep, rcm
from marl_hpc.summary import git_state, versions

ROOT = Path(__file__).parent.parent
AGENTS = (1_000, 10_000, 100_000, 1_000_000)
WIDTHS = (64, 1_000, 10_000)
MESSAGES = 5_000  # of a rank up to which a message an edge is sent: beyond, it takes minutes
REPEATS = 9
SAMPLE_MS = 20.0  # steps of a sample take so long together: alone, a short one would be a measure of who leaves the barrier when
COLD_BYTES, COLD_WIDTH = 256e6, 64
MEASURABLE = 8e6  # bytes from which memory is reported: below, it is the allocator's


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


class Ranks:
    """What ranks that measure together need, by torch.distributed or by MPI."""

    def __init__(self, ranks: int, communicator: Any) -> None:
        self.ranks, self.communicator = ranks, communicator

    def barrier(self) -> None:
        if self.communicator is not None:
            self.communicator.Barrier()
        elif self.ranks > 1:
            dist.barrier()

    def gathered(self, value: float) -> list[float]:
        """Every rank's."""
        if self.communicator is not None:
            return self.communicator.allgather(value)
        if self.ranks == 1:
            return [value]
        values = [torch.zeros(1, dtype=torch.float64) for _ in range(self.ranks)]
        dist.all_gather(values, torch.tensor([value], dtype=torch.float64))
        return [float(value) for value in values]

    def times_ms(self, call: Callable[[], Any], repeats: int = REPEATS) -> list[float]:
        """(median, least, most) of the slowest rank, a call; ranks begin together."""
        self.sample_ms(call, 1)
        calls = max(1, round(SAMPLE_MS / max(1e-3, self.sample_ms(call, 1))))
        taken = [self.sample_ms(call, calls) / calls for _ in range(repeats)]
        return [statistics.median(taken), min(taken), max(taken)]

    def sample_ms(self, call: Callable[[], Any], calls: int) -> float:
        """Of the slowest rank, which all are told."""
        self.barrier()
        begun = time.perf_counter()
        for _ in range(calls):
            call()
        return 1e3 * max(self.gathered(time.perf_counter() - begun))

    def held_bytes(self) -> float:
        """By all ranks; what several map counts once, and what was freed not at all."""
        ctypes.CDLL(None).malloc_trim(0)
        self.barrier()
        rollup = Path("/proc/self/smaps_rollup").read_text()
        return sum(self.gathered(1024.0 * int(next(line for line in rollup.splitlines() if line.startswith("Pss:")).split()[1])))


def values_of(agents: np.ndarray, width: int) -> torch.Tensor:
    """Rows that every rank can compute for whatever agents."""
    x = torch.from_numpy((agents.astype(np.int64) * 2654435761 % 1000003 / 1000003.0).astype(np.float32))
    return x[:, None] * torch.linspace(0.5, 1.5, width) + 0.25


def measure(rank: int, ranks: int, graph: topology.Graph, width: int, communicator: Any) -> dict[str, Any]:
    """{"ms": {way: (median, least, most)}, "memory": {transport: of parameters and halo}}."""
    together = Ranks(ranks, communicator)
    weights, owners = topology.metropolis_hastings(graph), keep(graph, ranks)
    plan = ExchangePlan(weights, owners, rank)
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
        ways: dict[str, tuple[Any, str]] = {"MPI Neighbor_alltoallv": (Mpi(communicator), "compiled")}
    elif ranks == 1:
        ways = {"alone": (Nobody(), "compiled"), "alone, PyTorch's product": (Nobody(), "torch")}
    else:
        shared = SharedMemory()
        ways = {
            "shared memory": (shared, "compiled"), "shared memory, PyTorch's product": (shared, "torch"),
            "point-to-point": (PointToPoint(), "compiled"), "all-to-all": (AllToAll(), "compiled"),
        }  # fmt: skip
    ms: dict[str, list[float]] = {}
    memory: dict[str, float] = {}
    target = torch.empty_like(start)
    ms["memory copy"] = together.times_ms(lambda: target.copy_(start))
    parameters = sum(together.gathered(4.0 * width * plan.rows))
    for name, (transport, kernel) in ways.items():
        plan = ExchangePlan(weights, owners, rank)  # with no matrices from another way
        before = together.held_bytes()
        mixing = Mixing(plan, transport, width, kernel=kernel)
        mixing.rows.copy_(start)
        check(name, mixing.step())
        mixing.step()  # into the buffer that it began in
        if parameters >= MEASURABLE:
            memory[name] = (together.held_bytes() - before) / parameters
        ms[name] = together.times_ms(mixing.step)
        if name.startswith(("alone", "shared memory")):
            local = name.replace("alone", "local mixing").replace("shared memory", "local mixing")
            ms[local] = together.times_ms(lambda mixing=mixing: (mixing.early[0](), mixing.late[0]()))
        together.barrier()
        del mixing
        if kernel == "compiled" and name in ("alone", "shared memory") and width == COLD_WIDTH and len(owners) >= 10_000:
            ms[f"{name}, rows cold"] = cold(plan, transport, width, start, together)
    if communicator is None and ranks > 1:
        ms["all-reduce"] = together.times_ms(lambda: dist.all_reduce(target))
        ms["all-gather, then mixing"] = all_gather_and_mix(plan, start, together, check)
        messages = max(together.gathered(sum(plan.owners[plan.weights.indices] != rank)))
        if messages <= MESSAGES and max(together.gathered(4.0 * width * plan.weights.nnz)) <= 1e9:
            by_edges = EdgeByEdge(plan, width)
            check("a message an edge", by_edges.mix(start))
            ms["a message an edge"] = together.times_ms(lambda: by_edges.mix(start), 5)
    return {"ms": ms, "memory": memory}


def cold(plan: ExchangePlan, transport: Any, width: int, start: torch.Tensor, together: Ranks) -> list[float]:
    """As many sets of rows as no cache holds, mixed in turn: as between steps of learning, which go through other memory."""
    sets = max(1, round(COLD_BYTES / (4.0 * width * len(plan.owners))))
    mixings = [Mixing(plan, transport, width, kernel="compiled") for _ in range(sets)]
    for mixing in mixings:
        mixing.rows.copy_(start)
        mixing.step(2)
    in_turn = itertools.cycle(mixings)
    return together.times_ms(lambda: next(in_turn).step())


def all_gather_and_mix(
    plan: ExchangePlan, start: torch.Tensor, together: Ranks, check: Callable[[str, torch.Tensor], None]
) -> list[float]:
    gathered = [torch.empty(int(size), start.shape[1]) for size in plan.counts]
    whole = plan.matrix(slice(0, len(start)), torch.float32, layout=plan.everybody)

    def mix() -> torch.Tensor:
        if len(set(plan.counts.tolist())) == 1:
            dist.all_gather(gathered, start)
        else:
            for q in range(len(plan.counts)):
                dist.broadcast(start if q == plan.rank else gathered[q], q)
            gathered[plan.rank] = start
        return torch.mm(whole, torch.cat(gathered))

    check("all-gather, then mixing", mix())
    return together.times_ms(mix)


class EdgeByEdge:
    """Each edge brings its row into a place of its own, from another rank by a message of its own; then rows are summed."""

    def __init__(self, plan: ExchangePlan, width: int) -> None:
        weights, owners = plan.weights, plan.owners
        reader = plan.agents[np.repeat(np.arange(len(plan.agents)), np.diff(weights.indptr))]
        own = owners[weights.indices] == plan.rank
        self.inbox = torch.empty(weights.nnz, width)  # in-degree times the rows
        self.local = torch.from_numpy(np.flatnonzero(own)), torch.from_numpy(plan.places[weights.indices[own]])
        crossing = np.flatnonzero(~own)
        # both ends go through their edges (reader, read) in one order, so that a message needs no tag; edges are undirected
        arriving = crossing[np.lexsort((weights.indices[crossing], reader[crossing]))]
        self.arriving = [(int(edge), int(owners[weights.indices[edge]])) for edge in arriving]
        leaving = crossing[np.lexsort((reader[crossing], weights.indices[crossing]))]
        self.leaving = [(int(plan.places[reader[edge]]), int(owners[weights.indices[edge]])) for edge in leaving]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse (CSR|invariant)")
            self.sums = torch.sparse_csr_tensor(
                torch.from_numpy(weights.indptr.astype(np.int32)), torch.arange(weights.nnz, dtype=torch.int32),
                torch.from_numpy(weights.data).float(), (len(plan.agents), weights.nnz), check_invariants=False,
            )  # fmt: skip
        self.out = torch.empty(len(plan.agents), width)

    def mix(self, x: torch.Tensor) -> torch.Tensor:
        works = [dist.irecv(self.inbox[edge], owner) for edge, owner in self.arriving]
        works += [dist.isend(x[row], reader) for row, reader in self.leaving]
        places, rows = self.local
        self.inbox.index_copy_(0, places, x.index_select(0, rows))
        for work in works:
            assert work is not None
            work.wait()
        return torch.addmm(self.out, self.sums, self.inbox, beta=0, out=self.out)


def work(rank: int, ranks: int, cases: list[tuple[str, int, int]], communicator: Any, say: Callable[[Any], None]) -> None:
    torch.set_num_threads(1)
    made: dict[tuple[str, int], topology.Graph] = {}
    measure(rank, ranks, topology.ring(4 * ranks), 64, communicator)  # libraries are in memory from here on
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


Row = dict[str, float]


def in_copies(row: Row, way: str) -> float:
    return row[way] / row["memory copy (beside MPI)" if way.startswith("MPI") else "memory copy"]


# what is claimed, the bound, whether it is the most or the least allowed, and what it is in a case (KeyError: not measured there)
CLAIMS: list[tuple[str, float, str, Callable[[Row, Row], float]]] = [
    ("local mixing, in memory copies", 1.5, "most", lambda ms, memory: in_copies(ms, "local mixing")),
    ("a step in shared memory, in memory copies", 2.0, "most", lambda ms, memory: in_copies(ms, "shared memory")),
    (
        "a step in shared memory, of MPI's, each in its own memory copies", 1.0, "most",
        lambda ms, memory: in_copies(ms, "shared memory") / in_copies(ms, "MPI Neighbor_alltoallv"),
    ),
    ("a message an edge, in steps in shared memory", 5.0, "least", lambda ms, memory: ms["a message an edge"] / ms["shared memory"]),
    ("all-reduce, in steps in shared memory", 10.0, "least", lambda ms, memory: ms["all-reduce"] / ms["shared memory"]),
    ("memory in shared memory, in parameters and halo", 2.5, "most", lambda ms, memory: memory["shared memory"]),
    ("memory point to point, in parameters and halo", 2.5, "most", lambda ms, memory: memory["point-to-point"]),
]  # fmt: skip


def judged(ms: dict[str, Row], memory: dict[str, Row], cases: dict[str, tuple[str, int, int, int]]) -> list[dict[str, Any]]:
    """What of the claims held where, worst cases first named."""
    found = []
    for claim, bound, allowed, value in CLAIMS:
        values = {}
        for case, row in ms.items():
            with contextlib.suppress(KeyError):
                values[case] = value(row, memory[case])
        found.append(verdict(claim, bound, allowed, values))
    for claim, suffix in (("time of an agent", ""), ("time of an agent, rows cold", ", rows cold")):
        spread = {}
        for group in {(graph, width, ranks) for graph, _, width, ranks in cases.values()}:
            each = {}
            for case, (graph, agents, width, ranks) in cases.items():
                way = ("alone" if ranks == 1 else "shared memory") + suffix
                if (graph, width, ranks) == group and agents >= 10_000 and way in ms[case]:
                    each[agents] = ms[case][way] / agents
            if {10_000, 1_000_000} <= each.keys():
                middle = statistics.median(each.values())
                spread[f"{group[0]}, P = {group[1]}, {group[2]} ranks"] = max(abs(value / middle - 1) for value in each.values())
        found.append(verdict(f"{claim}, farthest from the median of 10,000 to 1,000,000 agents", 0.2, "most", spread))
    return found


def verdict(claim: str, bound: float, allowed: str, values: Row) -> dict[str, Any]:
    if not values:
        return {"claim": claim, "bound": bound, "allowed": allowed, "cases": 0, "held": 0}
    worst = (max if allowed == "most" else min)(values, key=lambda case: values[case])
    held = sum(value <= bound if allowed == "most" else value >= bound for value in values.values())
    return {
        "claim": claim, "bound": bound, "allowed": allowed, "cases": len(values), "held": held,
        "median": statistics.median(values.values()), "worst": values[worst], "worst_case": worst, "values": values,
    }  # fmt: skip


def print_claims(found: list[dict[str, Any]]) -> None:
    print("\n| claim | bound | held in | median | worst |\n|---|---|---|---|---|")
    for row in found:
        bound = f"at {row['allowed']} {row['bound']:g}"
        if row["cases"]:
            told = f"{row['held']} of {row['cases']} | {row['median']:.2f} | {row['worst']:.2f} ({row['worst_case']})"
        else:
            told = "not measured | – | –"
        print(f"| {row['claim']} | {bound} | {told} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--graphs", nargs="+", default=["torus", "random geometric"])
    parser.add_argument("--agents", type=int, nargs="+", default=list(AGENTS))
    parser.add_argument("--widths", type=int, nargs="+", default=list(WIDTHS))
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "neighbor_allreduce.json")
    parser.add_argument("--most", type=float, default=1.1e9, help="bytes of all agents' numbers, at most")
    parser.add_argument("--mpi", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.mpi:
        from mpi4py import MPI

        communicator = MPI.COMM_WORLD
        given = [tuple(case) for case in json.loads(arguments.mpi)]
        work(communicator.rank, communicator.size, given, communicator, lambda line: print(json.dumps(line), flush=True))
        return
    sizes = [(g, a, p) for g in arguments.graphs for a in arguments.agents for p in arguments.widths if 4 * a * p <= arguments.most]
    if not sizes:
        raise SystemExit(f"no size has {arguments.most:g} bytes or less; give fewer --agents, --widths, or more --most")
    table: dict[str, Row] = {}
    spread: dict[str, dict[str, list[float]]] = {}
    memory: dict[str, Row] = {}
    cases: dict[str, tuple[str, int, int, int]] = {}

    def say(line: Any, ranks: int) -> None:
        name, agents, width, found = line
        case = f"{name}, {agents:,} agents, P = {width}, {ranks} ranks"
        cases[case] = (name, agents, width, ranks)
        row = table.setdefault(case, {})
        for way, (median, least, most) in found["ms"].items():
            way = way if way not in row else f"{way} (beside MPI)"
            row[way] = median
            spread.setdefault(case, {})[way] = [least, most]
        memory.setdefault(case, {}).update(found["memory"])

    for ranks in arguments.ranks:
        forked(ranks, sizes, lambda line, ranks=ranks: say(line, ranks))
        if ranks > 1:
            by_mpi(ranks, sizes, lambda line, ranks=ranks: say(line, ranks))
        for case, row in table.items():
            if cases[case][3] == ranks:
                ways = ", ".join(f"{way} {in_copies(row, way):.2f}" for way in row if not way.startswith("memory copy"))
                held = "".join(f"; memory {way} {value:.2f}" for way, value in memory[case].items())
                print(f"{case}: copy {row['memory copy']:.3f} ms; {ways}{held}", flush=True)
    claims = judged(table, memory, cases)
    print_claims(claims)
    record = {
        "question": (__doc__ or "").splitlines()[0], "git": git_state(), "versions": versions(), "cores": os.cpu_count(),
        "unit": "ms, median over repetitions of the slowest rank", "claims": claims, "table": table, "least and most": spread,
        "memory, in parameters and halo": memory,
    }  # fmt: skip
    arguments.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
