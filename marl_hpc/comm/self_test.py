"""Does this torch's RPC do what we rely on? `python -m marl_hpc.comm.self_test` prints a line per property and exits with 0 or 1.

Two real processes on loopback: a callee that joins with an elastic agent, is called, killed and replaced under a new name, and a
stranger without the key. What of torch is private, and so may change, is all in `rpc.py`; this is the check behind the range of
versions that pyproject.toml allows.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from marl_hpc.comm import rpc
from marl_hpc.comm.peers import Parking, PeerLost
from marl_hpc.comm.rpc import RpcPeer

KEY = b"self-test" * 4
DEADLINE_S = 20.0


class Callee:
    """Handlers as the shards have them."""

    def __init__(self) -> None:
        self.parking = Parking()
        self.value: torch.Tensor | None = None

    def double(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2

    def wait_for_value(self) -> Any:
        return self.parking.answer(lambda: self.value)

    def give(self, x: torch.Tensor) -> None:
        self.value = x.clone()
        self.parking.settle()


def serve(number: int) -> None:
    rpc.sign_with(KEY)
    address = rpc.join_elastic(f"callee:{number}", number, DEADLINE_S)
    rpc.serve(Callee(), ("double", "wait_for_value", "give"))
    print(json.dumps(address), flush=True)
    time.sleep(4 * DEADLINE_S)


def start_callee(number: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "marl_hpc.comm.self_test", str(number)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    rpc.introduce(f"callee:{number}", number, json.loads(process.stdout.readline()))
    return process


def call(number: int, method: str, *arguments: Any) -> Any:
    return RpcPeer("callee", f"callee:{number}").call(method, *arguments)


def answer(pending: Any) -> Any:
    return pending.wait(deadline_s=DEADLINE_S, describe=lambda: "no answer")


def refused(action: Callable[[], Any], words: str) -> bool:
    try:
        action()
    except RuntimeError as error:
        return words in str(error)
    return False


def lost(action: Callable[[], Any]) -> bool:
    try:
        action()
    except PeerLost:
        return True
    return False


def main() -> int:
    os.environ.setdefault("TP_SOCKET_IFNAME", "lo")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if len(sys.argv) > 1:
        serve(int(sys.argv[1]))
        return 0
    rpc.sign_with(KEY)
    rpc.join_elastic("caller:0", 0, DEADLINE_S)
    results: dict[str, bool] = {}
    first = start_callee(1)
    x = torch.arange(1000, dtype=torch.float64)
    results["a call carries tensors both ways"] = torch.equal(answer(call(1, "double", x)), 2 * x)
    parked = [call(1, "wait_for_value") for _ in range(20)]
    answer(call(1, "give", x))
    results["20 parked calls hold no thread and are all answered"] = all(torch.equal(answer(p), x) for p in parked)
    rpc.sign_with(b"another key" * 3)
    results["a call that isn't signed with the key is refused"] = refused(lambda: answer(call(1, "double", x)), "isn't signed")
    rpc.sign_with(KEY)
    results["the callee goes on serving"] = torch.equal(answer(call(1, "double", x)), 2 * x)
    results["only handlers can be called"] = refused(lambda: answer(call(1, "nothing_of_that_name")), "no handler")
    first.kill()
    first.wait()
    results["a call to a killed peer fails at once"] = lost(lambda: answer(call(1, "double", x)))
    second = start_callee(2)
    results["a replacement joins and is called"] = torch.equal(answer(call(2, "double", x)), 2 * x)
    second.kill()
    for what, passed in results.items():
        print(f"{'ok  ' if passed else 'FAIL'} {what}")
    print(f"torch {torch.__version__}: {sum(results.values())} of {len(results)}", flush=True)
    rpc.leave()
    return 0 if all(results.values()) else 1


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)
