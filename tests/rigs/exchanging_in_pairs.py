"""A transport for tests on one machine: as if every two ranks were on a host of their own."""

from typing import Any

import torch.distributed as dist

from marl_hpc.comm.shared_memory import Hosts


def hosts_of_two(**options: Any) -> Hosts:
    return Hosts([rank // 2 for rank in range(dist.get_world_size())], **options)
