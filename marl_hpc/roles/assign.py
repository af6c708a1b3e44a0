"""From ranks to roles: a pure function, printable as a table. Torch-free."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from marl_hpc.config import ConfigError, Roles

KINDS = ("learner", "rollout", "parameter", "dataset", "inference")


class Role(NamedTuple):
    kind: str
    index: int

    def __str__(self) -> str:
        return f"{self.kind}/{self.index}"


def count_roles(roles: Roles, world_size: int | None, *, networked: bool = False) -> dict[str, int]:
    """How many ranks each role gets. `world_size` is what a launcher gave, None when we may start as many as are asked for.

    Unset roles share what is left: one parameter and one dataset shard for every 16 ranks, one learner for every 8, rollout workers
    the rest; there are inference roles only where they are asked for. In networked learning every learner has its own agents, and so has
    each of a team of as many rollout workers. Raises ConfigError when the numbers can't be met.

    >>> count_roles(Roles(), None)
    {'learner': 1, 'rollout': 1, 'parameter': 1, 'dataset': 1, 'inference': 0}
    >>> count_roles(Roles(inference=1), 16)
    {'learner': 2, 'rollout': 11, 'parameter': 1, 'dataset': 1, 'inference': 1}
    """
    asked = {kind: getattr(roles, kind) for kind in KINDS}
    if world_size is None:
        if networked and asked["rollout"] is None:
            asked["rollout"] = asked["learner"]
        return _fed({kind: 1 if count is None else count for kind, count in asked.items()}, networked)
    counts = {
        "learner": asked["learner"] or max(1, world_size // 8),
        "parameter": asked["parameter"] or max(1, world_size // 16),
        "dataset": asked["dataset"] or min(max(1, world_size // 16), asked["rollout"] or world_size),
        "inference": roles.inference,
    }
    if networked and asked["learner"] is None and asked["rollout"] is None:  # as many as leave whole teams of workers
        left = world_size - sum(counts.values()) + counts["learner"]
        counts["learner"] = max([k for k in range(1, counts["learner"] + 1) if left % k == 0 and left > k], default=1)
    others = sum(counts.values())
    counts["rollout"] = asked["rollout"] or max(1, world_size - others)
    total = others + counts["rollout"]
    if total != world_size:
        text = " + ".join(f"{counts[kind]} {kind}" for kind in KINDS if counts[kind])
        rest = world_size - others
        advice = f"set roles.rollout={rest}" if rest > 0 else f"start at least {others + 1} ranks, or one rank with world=inline"
        raise ConfigError(f"roles ask for {total} ranks ({text}) but the launcher started {world_size}; {advice}")
    return _fed({kind: counts[kind] for kind in KINDS}, networked)


def _fed(counts: dict[str, int], networked: bool) -> dict[str, int]:
    """The counts, once it is checked that every role has somebody to serve."""
    learners, workers = counts["learner"], counts["rollout"]
    if networked and workers % learners:
        raise ConfigError(
            f"roles.learner={learners} with roles.rollout={workers}: in networked learning each learner has a part of the agents, and rollout "
            f"workers come in teams of {learners} with a part each; set roles.rollout to a multiple of {learners}"
        )
    if networked and learners > 1 and counts["inference"]:
        raise ConfigError(
            f"roles.inference={counts['inference']} with {learners} learners of networked agents: no rank holds all of their policies; "
            "set roles.inference=0 or roles.learner=1"
        )
    if counts["dataset"] > counts["rollout"]:
        raise ConfigError(
            f"roles.dataset={counts['dataset']} but only {counts['rollout']} rollout workers write to them; set roles.dataset no higher than roles.rollout"
        )
    if counts["inference"] > counts["rollout"]:
        raise ConfigError(
            f"roles.inference={counts['inference']} but only {counts['rollout']} rollout workers ask them; set roles.inference no higher than roles.rollout"
        )
    return counts


def assign(counts: dict[str, int], hosts: Sequence[str], gpus: Sequence[int] | None = None) -> list[Role]:
    """The role of each rank; `hosts[rank]` is its host, `gpus[rank]` how many GPUs it sees.

    Rank 0 is always learner 0; further learners take ranks with a GPU first, then inference roles do. Those and shards are spread over
    hosts, beginning with the learners'. Rollout workers are the rest, in rank order.

    >>> [str(role) for role in assign(dict(learner=1, rollout=1, parameter=1, dataset=1, inference=0), ["a"] * 4)]
    ['learner/0', 'rollout/0', 'parameter/0', 'dataset/0']
    """
    size = len(hosts)
    gpus = list(gpus or [0] * size)
    assert sum(counts.values()) == size, "counts come from count_roles"
    roles: dict[int, Role] = {}
    by_gpu = [0, *sorted(range(1, size), key=lambda rank: (gpus[rank] == 0, rank))]
    for index, rank in enumerate(by_gpu[: counts["learner"]]):
        roles[rank] = Role("learner", index)
    order = list(dict.fromkeys([hosts[rank] for rank in roles] + list(hosts)))
    for kind in ("inference", "dataset", "parameter"):
        chosen: list[int] = []
        for index in range(counts[kind]):
            preferred = order[index % len(order) :] + order[: index % len(order)]
            # the last free rank of a host: with one host this keeps rollout workers next to the learners
            free = [r for host in preferred for r in reversed(range(size)) if r not in roles and hosts[r] == host]
            with_gpu = [r for r in free if gpus[r]] if kind == "inference" else []
            rank = (with_gpu or free)[0]
            chosen.append(rank)
            roles[rank] = Role(kind, index)
        roles |= {rank: Role(kind, index) for index, rank in enumerate(sorted(chosen))}
    rest = [rank for rank in range(size) if rank not in roles]
    roles |= {rank: Role("rollout", index) for index, rank in enumerate(rest)}
    return [roles[rank] for rank in range(size)]


def nearest(workers: Sequence[str], shards: Sequence[str]) -> list[int]:
    """The dataset shard that each rollout worker writes to, by their hosts: one on its own host where there is one, and no shard is left
    without a worker nor has more than its share while another could take some.

    >>> nearest(["a", "a", "b"], ["b", "a"])
    [1, 1, 0]
    >>> nearest(["a", "a", "a"], ["b", "a"])
    [1, 1, 0]
    """
    share = -(-len(workers) // len(shards))
    chosen = [-1] * len(workers)
    load = [0] * len(shards)
    for local in (True, False):
        for worker, host in enumerate(workers):
            if chosen[worker] < 0:
                open_ = [s for s, where in enumerate(shards) if load[s] < share and (where == host or not local)]
                if open_:
                    chosen[worker] = min(open_, key=lambda s: load[s])
                    load[chosen[worker]] += 1
    for empty in (s for s, count in enumerate(load) if count == 0):
        fullest = max(range(len(shards)), key=lambda s: load[s])
        worker = max(w for w, s in enumerate(chosen) if s == fullest)
        chosen[worker], load[fullest], load[empty] = empty, load[fullest] - 1, 1
    return chosen


def place_on_gpus(roles: Sequence[str], hosts: Sequence[str], gpus: Sequence[Sequence[str]]) -> list[str]:
    """A device for each rank; `gpus[rank]` names the GPUs it sees. Learners have a GPU of their own. Inference roles have the one that
    the fewest use, a learner's if there is no other. Everybody else has the CPU.

    Raises ConfigError where there are too few: NCCL can't have two learners on one GPU, nor learners without any among others.

    >>> place_on_gpus(["learner/0", "learner/1", "rollout/0", "inference/0"], ["a"] * 4, [["x", "y", "z"]] * 4)
    ['cuda:0', 'cuda:1', 'cpu', 'cuda:2']
    """
    used: Counter[tuple[str, str]] = Counter()
    devices = ["cpu"] * len(roles)
    learners = [rank for rank, role in enumerate(roles) if role.startswith("learner") or role == "inline"]
    for rank in learners if any(gpus[rank] for rank in learners) else []:
        free = [place for place, gpu in enumerate(gpus[rank]) if not used[hosts[rank], gpu]]
        if not free:
            seen = f"sees {len(gpus[rank])} GPUs, all taken by other learners" if gpus[rank] else "sees no GPU, but others do"
            raise ConfigError(
                f"rank {rank} ({roles[rank]}) on {hosts[rank]} {seen}; every learner needs one of its own: lower roles.learner, "
                "start the ranks with more GPUs, or set device=cpu"
            )
        used[hosts[rank], gpus[rank][free[0]]] += 1
        devices[rank] = f"cuda:{free[0]}"
    for rank in [rank for rank, role in enumerate(roles) if role.startswith("inference") and gpus[rank]]:
        users = [used[hosts[rank], gpu] for gpu in gpus[rank]]
        place = users.index(min(users))
        used[hosts[rank], gpus[rank][place]] += 1
        devices[rank] = f"cuda:{place}"
    return devices


def table(roles: Sequence[Role | str], hosts: Sequence[str]) -> str:
    """Ranks, roles and hosts as text."""
    lines = ["rank  role         host"]
    return "\n".join(
        lines + [f"{rank:>4}  {role!s:<12} {host}" for rank, (role, host) in enumerate(zip(roles, hosts, strict=True))]
    )
