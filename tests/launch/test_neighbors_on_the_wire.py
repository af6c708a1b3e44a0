"""What an exchange with neighbors sends, counted by the kernel on the way out of each host."""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import permutations
from pathlib import Path

from rigs import exchanging, program, require
from rigs.hosts import Hosts

STEPS, WIDTH = 50, 4000


def counted(hosts: Hosts, host: str, *words: str) -> str:
    return subprocess.run(hosts.command(host, ["nft", *words]), check=True, capture_output=True, text=True).stdout


def sent(hosts: Hosts) -> dict[tuple[str, str], int]:
    """Bytes from host to host, since counting began."""
    found = {}
    for host in hosts.names:
        for entry in json.loads(counted(hosts, host, "-j", "list", "counters"))["nftables"]:
            if counter := entry.get("counter"):
                found[host, counter["name"]] = counter["bytes"]
    return found


def wait_for(folder, names):
    until = time.monotonic() + 60
    while not all((folder / name).exists() for name in names):
        assert time.monotonic() < until, f"{names} didn't all come"
        time.sleep(0.05)


def exchange(folder: Path, hosts: Hosts, where: Sequence[str]) -> tuple[dict[tuple[str, str], int], set[str]]:
    """Ranks on these hosts exchange: bytes that went from host to host and from each to itself, and the transports that were chosen."""
    for host in hosts.names:
        counted(hosts, host, "add", "table", "ip", "count")
        counted(hosts, host, "add", "chain", "ip", "count", "out", "{ type filter hook output priority 0 ; }")
        for other in hosts.names:
            counted(hosts, host, "add", "counter", "ip", "count", other)
            rule = ["add", "rule", "ip", "count", "out", "ip", "daddr", hosts.addresses[other], "counter", "name", other]
            counted(hosts, host, *rule)
    port, ranks = hosts.free_port(where[0]), len(where)
    words = [str(ranks), hosts.addresses[where[0]], str(port), str(folder), str(STEPS), str(WIDTH)]
    started = [
        program.start(hosts.command(host, [sys.executable, exchanging.__file__, str(rank), *words]), cwd=folder)
        for rank, host in enumerate(where)
    ]
    wait_for(folder, [f"ready{rank}" for rank in range(ranks)])
    chosen = {(folder / f"ready{rank}").read_text() for rank in range(ranks)}
    before = sent(hosts)
    (folder / "go").touch()
    wait_for(folder, [f"done{rank}" for rank in range(ranks)])
    after = sent(hosts)
    (folder / "leave").touch()
    program.join(started)
    return {link: after[link] - before[link] for link in after}, chosen


ROWS = STEPS * exchanging.COLUMNS * WIDTH * 4  # bytes of one strip's border


def test_a_rank_sends_to_neighbor_ranks_only_and_each_boundary_row_once(tmp_path):
    require("hosts")
    with Hosts(3) as hosts:
        bytes_sent, chosen = exchange(tmp_path, hosts, hosts.names)
        assert chosen == {"point-to-point"}
        for a, b in permutations(range(3), 2):
            link = hosts.names[a], hosts.names[b]
            if abs(a - b) == 1:
                assert ROWS < bytes_sent[link] < 1.1 * ROWS  # and headers of packets
            else:
                assert bytes_sent[link] < 2000  # not neighbors


def test_ranks_of_one_host_send_each_other_nothing_and_other_hosts_what_these_need(tmp_path):
    require("hosts")
    with Hosts(2) as hosts:
        first, second = hosts.names
        bytes_sent, chosen = exchange(tmp_path, hosts, [first, first, second, second])
    assert chosen == {"shared memory inside hosts, point-to-point between them"}
    assert bytes_sent[first, first] < 2000
    assert bytes_sent[second, second] < 2000
    for link in permutations((first, second)):
        assert ROWS < bytes_sent[link] < 1.1 * ROWS
