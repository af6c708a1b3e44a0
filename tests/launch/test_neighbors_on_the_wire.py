"""What an exchange with neighbors sends, counted by the kernel on the way out of each host."""

import json
import subprocess
import sys
import time
from itertools import permutations

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


def test_a_rank_sends_to_neighbor_ranks_only_and_each_boundary_row_once(tmp_path):
    require("hosts")
    with Hosts(3) as hosts:
        for host in hosts.names:
            counted(hosts, host, "add", "table", "ip", "count")
            counted(hosts, host, "add", "chain", "ip", "count", "out", "{ type filter hook output priority 0 ; }")
            for other in hosts.names:
                if other != host:
                    counted(hosts, host, "add", "counter", "ip", "count", other)
                    rule = ["add", "rule", "ip", "count", "out", "ip", "daddr", hosts.addresses[other], "counter", "name", other]
                    counted(hosts, host, *rule)
        first = hosts.names[0]
        port = hosts.free_port(first)
        started = [
            program.start(
                hosts.command(
                    host,
                    [
                        sys.executable,
                        exchanging.__file__,
                        str(rank),
                        "3",
                        hosts.addresses[first],
                        str(port),
                        str(tmp_path),
                        str(STEPS),
                        str(WIDTH),
                    ],
                ),
                cwd=tmp_path,
            )
            for rank, host in enumerate(hosts.names)
        ]
        wait_for(tmp_path, [f"ready{rank}" for rank in range(3)])
        before = sent(hosts)
        (tmp_path / "go").touch()
        wait_for(tmp_path, [f"done{rank}" for rank in range(3)])
        after = sent(hosts)
        (tmp_path / "leave").touch()
        program.join(started)
    rows = STEPS * exchanging.COLUMNS * WIDTH * 4  # bytes of one strip's border
    for a, b in permutations(range(3), 2):
        link = hosts.names[a], hosts.names[b]
        bytes_sent = after[link] - before[link]
        if abs(a - b) == 1:
            assert rows < bytes_sent < 1.1 * rows  # and headers of packets
        else:
            assert bytes_sent < 2000  # not neighbors
