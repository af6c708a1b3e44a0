"""Passes rank 0's invitation through the c10d store of torchrun's agent. A process of its own, so that supervisors stay torch-free.

Reads the invitation from standard input (rank 0) or gets an empty one (the others), and prints it.
"""

from __future__ import annotations

import datetime
import os
import sys

from torch.distributed import TCPStore

KEY = "marl_hpc/invitation"


def main() -> None:
    timeout = datetime.timedelta(seconds=float(sys.argv[1]))
    store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), None, False, timeout)
    # one key for all attempts: TORCHELASTIC_RESTART_COUNT differs between nodes. Who reads an old invitation can't connect and
    # asks again.
    given = sys.stdin.read()
    if given:
        store.set(KEY, given)
    print(store.get(KEY).decode())


if __name__ == "__main__":
    main()
