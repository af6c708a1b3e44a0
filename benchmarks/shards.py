"""How fast are parameter and dataset shards, beside the physical floor of the same bytes?

    python benchmarks/shards.py [--seconds 1.5] [--largest 400000000]

Shards and clients are processes of their own that speak over loopback as in a run. Floors, measured in the same minute: a copy in
memory, a loopback TCP stream between two processes, and an RPC that carries nothing. Every number is the median or a percentile over
calls; ratios are what counts on a shared machine. Written to benchmarks/results/shards.json.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parent.parent
KEY = b"k" * 32
CROWD_BYTES = 4_000_000
SIZES = (10_000, 100_000, 1_000_000, 10_000_000, 100_000_000, 400_000_000)  # bytes


class Patient:
    """What clients want of a world."""

    rank, learners, patience_s, stopping = 0, 1, 120.0, False

    def stamp(self, allow_s: float | None = None) -> None:
        pass


class Empty:
    """A role that does nothing: what an RPC costs by itself."""

    handlers = ("nothing",)

    def nothing(self) -> int:
        return 0


def serving(make: Callable[[], Any], name: str, number: int, ready: Any) -> None:
    """A process that serves one role until it is ended."""
    from marl_hpc.comm import rpc
    from marl_hpc.comm.network import use_interface

    os.environ.update(use_interface("lo"))
    torch.set_num_threads(1)
    rpc.sign_with(KEY)
    role = make()
    rpc.serve(role, role.handlers)
    ready.put((name, number, rpc.join_elastic(name, number, 600.0)))
    threading.Event().wait()


def shard(index: int, shards: int) -> Any:
    from marl_hpc.roles.parameter import ParameterShard

    return ParameterShard(index, ("a",))


def optimizing(index: int, shards: int) -> Any:
    from marl_hpc.clocks import Clocks
    from marl_hpc.roles.coordinator import Coordinator
    from marl_hpc.roles.optimizing import OptimizingShard

    coordinator = Coordinator({"a": Clocks(range(8))}, 1 << 60, 1 << 60) if index == 0 else None
    return OptimizingShard(index, shards, coordinator)


def dataset() -> Any:
    from marl_hpc.roles.dataset import DatasetShard

    return DatasetShard(0, (0,), 1, 2, 0)


class Started:
    """Roles in processes, and peers to call them by from this one."""

    numbers = iter(range(1, 1 << 30))

    def __init__(self, makes: dict[str, Callable[[], Any]]) -> None:
        from marl_hpc.comm import rpc

        context = multiprocessing.get_context("spawn")  # no fork once an agent has started
        ready = context.Queue()
        self.processes = []
        for name, make in makes.items():
            number = next(self.numbers)
            self.processes.append(context.Process(target=serving, args=(make, f"{name}-{number}", number, ready), daemon=True))
            self.processes[-1].start()
        self.addresses = sorted((ready.get(timeout=60) for _ in self.processes), key=lambda found: found[1])
        self.rpc = rpc

    def peers(self) -> list[Any]:
        return peers_at(self.addresses)

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()


def peers_at(addresses: list[tuple[str, int, str]]) -> list[Any]:
    """Peers of started roles, for this process."""
    from marl_hpc.comm import rpc

    for name, number, address in addresses:
        rpc.introduce(name, number, address)
    return [rpc.RpcPeer(name, name) for name, _, _ in addresses]


WARM = 8  # calls until buffers of large messages have been used before: a system may be slow to give out memory for the first time


def timed(call: Callable[[int], Any], seconds: float, least: int = 7) -> list[float]:
    """Seconds of each call, once warm."""
    for number in range(WARM):
        call(number)
    taken: list[float] = []
    until = time.perf_counter() + seconds
    while len(taken) < least or (time.perf_counter() < until and len(taken) < 5000):
        begun = time.perf_counter()
        call(len(taken) + WARM)
        taken.append(time.perf_counter() - begun)
    return taken


def row(taken: list[float], size_bytes: int) -> dict[str, float]:
    ordered = sorted(taken)
    return {
        "p50_ms": 1e3 * statistics.median(ordered), "p99_ms": 1e3 * ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))],
        "gb_per_s": size_bytes / statistics.median(ordered) / 1e9, "calls": len(ordered),
    }  # fmt: skip


def tcp(size_bytes: int, seconds: float) -> list[float]:
    """The same bytes to another process over loopback TCP, and one byte back."""
    listener = socket.create_server(("127.0.0.1", 0))
    process = multiprocessing.get_context("spawn").Process(target=receive, args=(listener.getsockname(), size_bytes), daemon=True)
    process.start()
    connection, _ = listener.accept()
    data = memoryview(bytearray(size_bytes))

    def send(_: int) -> None:
        connection.sendall(data)
        connection.recv(1)

    taken = timed(send, seconds)
    connection.close()
    process.join(5)
    listener.close()
    return taken


def receive(address: tuple[str, int], size_bytes: int) -> None:
    connection = socket.create_connection(address)
    buffer = memoryview(bytearray(size_bytes))
    while True:
        got = 0
        while got < size_bytes:
            count = connection.recv_into(buffer[got:])
            if not count:
                return
            got += count
        connection.sendall(b"x")


def transfers(size_bytes: int, shards: int, seconds: float) -> dict[str, Any]:
    """Publishing, pulling, and handing in a gradient for the newest parameters; one client."""
    from marl_hpc.metrics import Clock
    from marl_hpc.roles.clients import ParameterClient
    from marl_hpc.roles.servers import ParameterServers

    values = torch.zeros(size_bytes // 4)
    found: dict[str, Any] = {}
    started = Started({f"shard{i}": partial(shard, i, shards) for i in range(shards)})
    client = ParameterClient(started.peers(), Patient(), Clock())  # type: ignore[arg-type]
    found["publish"] = row(timed(lambda version: client.publish("a", version, values), seconds), size_bytes)
    client.publish("a", 1 << 40, values)

    def pull(_: int) -> None:
        client.receivers.clear()
        client.pull(1 << 40)

    found["pull"] = row(timed(pull, seconds), size_bytes)
    started.end()
    started = Started({f"optimizer{i}": partial(optimizing, i, shards) for i in range(shards)})
    servers = ParameterServers(started.peers(), Patient(), Clock())  # type: ignore[arg-type]
    sgd = {"name": "sgd", "lr": 0.1, "eps": 1e-5, "weight_decay": 0.0, "momentum": 0.0}
    servers.define("a", values, len(values), [(0, len(values), sgd)])
    base = [servers.latest("a").version]

    def exchange(sequence: int) -> None:
        base[0] = servers.exchange("a", 0, sequence, values, -1, (base[0], 0), None).version

    found["exchange"] = row(timed(exchange, seconds), 2 * size_bytes)  # there and back
    started.end()
    return found


def calling(addresses: Any, number: int, size_bytes: int, seconds: float, together: Any, said: Any) -> None:
    """A process that reads the policies again and again, as a rollout worker does, then hands in gradients, as a learner does."""
    from marl_hpc.comm import rpc
    from marl_hpc.comm.network import use_interface
    from marl_hpc.metrics import Clock
    from marl_hpc.roles.servers import ParameterServers

    os.environ.update(use_interface("lo"))
    torch.set_num_threads(1)
    rpc.sign_with(KEY)
    rpc.join_elastic(f"client-{number}", 10_000 + number, 600.0)
    servers = ParameterServers(peers_at(addresses), Patient(), Clock())  # type: ignore[arg-type]
    values, sgd = torch.zeros(size_bytes // 4), {"name": "sgd", "lr": 0.1, "eps": 1e-5, "weight_decay": 0.0, "momentum": 0.0}
    servers.define("a", values, len(values), [(0, len(values), sgd)])
    base = [servers.latest("a").version]

    def pull(_: int) -> None:
        servers.receivers.clear()
        servers.newest({})

    def exchange(sequence: int) -> None:
        base[0] = servers.exchange("a", number, sequence, values, -1, (base[0], 0), None).version

    for name, call in {"pull": pull, "exchange": exchange}.items():
        together.wait()
        begun = time.perf_counter()
        taken = timed(call, seconds)
        said.put((name, taken, time.perf_counter() - begun))
    together.wait()


def crowd(size_bytes: int, shards: int, clients: int, seconds: float) -> dict[str, Any]:
    """Several clients at once: what they get together, and what each waits."""
    started = Started({f"optimizer{i}": partial(optimizing, i, shards) for i in range(shards)})
    context = multiprocessing.get_context("spawn")
    together, said = context.Barrier(clients), context.Queue()
    processes = [
        context.Process(target=calling, args=(started.addresses, number, size_bytes, seconds, together, said), daemon=True)
        for number in range(clients)
    ]
    for process in processes:
        process.start()
    found: dict[str, list[Any]] = {"pull": [], "exchange": []}
    for _ in range(2 * clients):
        name, taken, wall_s = said.get(timeout=120)
        found[name].append((taken, wall_s))
    for process in processes:
        process.join()
    started.end()
    table = {}
    for name, each in found.items():
        moved = size_bytes * (2 if name == "exchange" else 1)  # there and back
        table[name] = row([x for taken, _ in each for x in taken], moved)
        table[name]["gb_per_s"] = sum(len(taken) * moved / wall_s for taken, wall_s in each) / 1e9
    return table


def nothing_newer(seconds: float) -> dict[str, Any]:
    """A pull of nothing newer beside an RPC that carries nothing, idle and while the cores are busy."""
    from marl_hpc.metrics import Clock
    from marl_hpc.roles.servers import ParameterServers

    started = Started({"empty": Empty, "optimizer": partial(optimizing, 0, 1)})
    empty, peer = started.peers()
    servers = ParameterServers([peer], Patient(), Clock())  # type: ignore[arg-type]
    sgd = {"name": "sgd", "lr": 0.1, "eps": 1e-5, "weight_decay": 0.0, "momentum": 0.0}
    servers.define("a", torch.zeros(10_000), 10_000, [(0, 10_000, sgd)])
    have = servers.newest({}).versions

    def bare(_: int) -> None:
        empty.call("nothing").wait(deadline_s=10.0, describe=lambda: "no answer")

    def alternating() -> dict[str, Any]:
        """Both in turns, so that the machine's moods meet them alike."""
        taken: dict[str, list[float]] = {"bare RPC": [], "nothing newer": []}
        for _ in range(10):
            taken["bare RPC"] += timed(bare, seconds / 10)
            taken["nothing newer"] += timed(lambda _: servers.newest(have), seconds / 10)
        return {name: row(times, 0) for name, times in taken.items()}

    found = {"idle": alternating()}
    busy = multiprocessing.get_context("spawn").Process(target=train_for_ever, daemon=True)
    busy.start()
    time.sleep(5.0)  # until it has started
    found["beside a busy learner"] = alternating()
    busy.kill()
    started.end()
    return found


def train_for_ever() -> None:
    torch.set_num_threads(1)
    network = torch.nn.Sequential(torch.nn.Linear(256, 256), torch.nn.Tanh(), torch.nn.Linear(256, 256))
    x = torch.randn(256, 256)
    while True:
        network(x).square().mean().backward()


def data(seconds: float) -> dict[str, Any]:
    """Inserting and sampling fragments of simple_spread as the quickstart collects them, and collecting and learning them."""
    from marl_hpc import envs
    from marl_hpc.metrics import Clock
    from marl_hpc.roles.clients import DatasetClient
    from marl_hpc.storage.fragments import allocate, pack
    from marl_hpc.types import InterfaceSpec

    env = envs.make("mpe/simple_spread", copies=16)
    interface = InterfaceSpec(name="a", paradigm="independent", groups=env.spec.groups)
    steps, copies = 50, 16
    rows = {"a": {"rows": pack(allocate(interface, "float32", steps, copies))}}
    size_bytes = rows["a"]["rows"].nbytes
    started = Started({"dataset": dataset})
    client = DatasetClient(started.peers(), Patient(), Clock(), copies, [0])  # type: ignore[arg-type]
    none = torch.zeros(0, 3, dtype=torch.float64)
    taken: dict[str, list[float]] = {"insert": [], "sample": []}
    for sequence in range(max(20, int(200 * seconds))):
        begun = time.perf_counter()
        client.insert(0, sequence, rows, none, sequence)
        between = time.perf_counter()
        client.sample(sequence, "a", 0, 1)
        client.acknowledge(sequence, "a", 0)
        ended = time.perf_counter()
        taken["insert"].append(between - begun)
        taken["sample"].append(ended - between)
    started.end()
    found: dict[str, Any] = {name: row(times, size_bytes) for name, times in taken.items()}
    for entry in found.values():
        entry["transitions_per_s"] = 1e3 * steps * copies / entry["p50_ms"]
    found["work"] = work(steps, copies)
    found["share"] = {
        "insert of collecting": found["insert"]["p50_ms"] / found["work"]["collect_ms"],
        "sample of learning": found["sample"]["p50_ms"] / found["work"]["learn_ms"],
    }
    return {"fragment_bytes": size_bytes, "transitions": steps * copies, **found}


def work(steps: int, copies: int) -> dict[str, float]:
    """Milliseconds that collecting such a fragment and learning from it take, in a whole run of IPPO over four ranks."""
    with tempfile.TemporaryDirectory() as folder:
        overrides = [
            "env=mpe/simple_spread", f"rollout.envs={copies}", f"rollout.fragment={steps}", "budget.env_steps=40000",
            "evaluate.every_steps=1000000", "evaluate.final_episodes=1", "checkpoint.every_steps=1000000", f"run.dir={folder}/run",
        ]  # fmt: skip
        subprocess.run(
            [sys.executable, "-m", "marl_hpc", *overrides], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        summary = json.loads((Path(folder) / "run" / "summary.json").read_text())
    split = {entry["role"]: entry["computing"] for entry in summary["time_split"].values()}
    fragments = summary["env_steps"] / (steps * copies)
    collecting = split["rollout/0"]["environment"] + split["rollout/0"]["inference"]
    return {"collect_ms": 1e3 * collecting / fragments, "learn_ms": 1e3 * split["learner/0"]["learn"] / fragments}


def main() -> None:
    from marl_hpc.comm import rpc
    from marl_hpc.comm.network import use_interface
    from marl_hpc.comm.zygote import ALLOCATION
    from marl_hpc.summary import git_state, versions

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    if not os.environ.items() >= ALLOCATION.items():  # as role processes are started
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ALLOCATION})
    parser.add_argument("--seconds", type=float, default=1.5, help="of each measurement")
    parser.add_argument("--largest", type=int, default=SIZES[-1], help="bytes of the largest vector")
    arguments = parser.parse_args()
    os.environ.update(use_interface("lo"))
    torch.set_num_threads(1)
    rpc.sign_with(KEY)
    rpc.join_elastic("client", 0, 600.0)
    table: dict[str, Any] = {}
    for size in [size for size in SIZES if size <= arguments.largest]:
        values = torch.zeros(size // 4)
        entry: dict[str, Any] = {
            "memory copy": row(timed(lambda _, values=values: values.clone(), arguments.seconds / 3), size),
            "loopback TCP": row(tcp(size, arguments.seconds), size),
        }
        for shards in (1, 2):
            entry |= {f"{name}, {shards} shards": found for name, found in transfers(size, shards, arguments.seconds).items()}
        floor = entry["loopback TCP"]["gb_per_s"]
        for name, found in entry.items():
            found["of_tcp"] = found["gb_per_s"] / floor
            print(
                f"{size:>11,} bytes  {name:<20} {found['gb_per_s']:7.3f} GB/s  {found['of_tcp']:5.2f} of TCP  p50 {found['p50_ms']:9.3f} ms  p99 {found['p99_ms']:9.3f} ms",
                flush=True,
            )
        table[str(size)] = entry
    crowds: dict[str, Any] = {}
    for shards in (1, 2):
        for clients in (1, 2, 3):
            crowds[f"{shards} shards, {clients} clients"] = entry = crowd(CROWD_BYTES, shards, clients, arguments.seconds)
            for name, found in entry.items():
                print(
                    f"{CROWD_BYTES:>11,} bytes  {name:<8} {shards} shards, {clients} clients: {found['gb_per_s']:7.3f} GB/s together, "
                    f"p50 {found['p50_ms']:.3f} ms, p99 {found['p99_ms']:.3f} ms",
                    flush=True,
                )
    small = nothing_newer(arguments.seconds)
    slower = small["beside a busy learner"]["nothing newer"]["p99_ms"] / small["idle"]["nothing newer"]["p99_ms"]
    print(f"p99 of nothing newer beside a busy learner: {slower:.2f} of idle")
    for name, entry in small.items():
        ratio = entry["nothing newer"]["p50_ms"] / entry["bare RPC"]["p50_ms"]
        print(
            f"{name}: nothing newer {entry['nothing newer']['p50_ms']:.3f} ms, p99 {entry['nothing newer']['p99_ms']:.3f} ms, {ratio:.2f} of a bare RPC",
            flush=True,
        )
    dataset_rows = data(arguments.seconds)
    for name in ("insert", "sample"):
        print(
            f"dataset {name}: {dataset_rows[name]['transitions_per_s']:,.0f} transitions/s, {dataset_rows[name]['gb_per_s']:.3f} GB/s",
            flush=True,
        )
    for name, share in dataset_rows["share"].items():
        print(f"dataset: {name} {100 * share:.1f} %")
    record = {
        "question": (__doc__ or "").splitlines()[0], "git": git_state(), "versions": versions(), "cores": os.cpu_count(),
        "transfers": table, "crowds": {"bytes": CROWD_BYTES, **crowds}, "small": small, "dataset": dataset_rows,
    }  # fmt: skip
    (ROOT / "benchmarks" / "results" / "shards.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
