"""Exchanges that go wrong over real ranks: what is refused, who is named, and that no rank goes on with rows of another step."""

import os
import platform
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch
import torch.distributed as dist
from rigs.exchanging_in_pairs import hosts_of_two
from rigs.ranks import Ranks, together

from marl_hpc import topology
from marl_hpc.comm.exchange_plan import ExchangePlan
from marl_hpc.comm.neighbors import Mixing, choose_transport, neighbor_allreduce, neighbor_gather, neighbor_mix
from marl_hpc.comm.peers import PeerLost
from marl_hpc.comm.shared_memory import SharedMemory
from marl_hpc.comm.transports import AllToAll, Mpi, Nobody, PointToPoint
from marl_hpc.config import ConfigError

AGENTS = 24
KINDS = {
    "point-to-point": PointToPoint, "all-to-all": AllToAll, "shared memory": SharedMemory, "two ranks a host": hosts_of_two,
}  # fmt: skip


def owners_of(ranks):
    return np.arange(AGENTS) * ranks // AGENTS


def ring_plan(ranks, rank):
    return ExchangePlan(topology.metropolis_hastings(topology.ring(AGENTS)), owners_of(ranks), rank)


def stopped_for_a_while(rank, ranks, kind, folder):
    """Rank 1 stands still through a deadline of the others, and then goes on."""
    plan = ring_plan(ranks, rank)
    mixing = Mixing(plan, KINDS[kind](deadline_s=0.5 if rank != 1 else 3.0), 3)
    mixing.rows.fill_(1.0)
    mixing.step()
    if rank == 1:
        (Path(folder) / "pid").write_text(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGSTOP)
        try:
            mixing.step(2)
        except PeerLost as error:
            return str(error)
        return "nothing was noticed"
    with pytest.raises(PeerLost):
        mixing.step()
    os.kill(int((Path(folder) / "pid").read_text()), signal.SIGCONT)
    time.sleep(0.3)  # so that rank 1 has sent its rows of the step that was given up
    with pytest.raises(PeerLost, match="start again with a new transport") as refused:
        mixing.step()
    return str(refused.value)


@pytest.mark.parametrize("kind", KINDS)
def test_after_a_neighbor_was_late_no_exchange_begins_that_might_read_another_steps_rows(kind, tmp_path):
    with Ranks(stopped_for_a_while, 2, kind, tmp_path) as started:
        assert "1" in started.answer(0, 20)
        assert "0" in started.answer(1, 20)  # it hears that rank 0 gave up, and doesn't go on alone


def dead_before_memory_is_shared(rank, ranks):
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    with pytest.raises(PeerLost, match="one of 2 ranks is gone or late; nobody knows who is on one host without it"):
        choose_transport(ring_plan(ranks, rank))
    with pytest.raises(PeerLost, match="one of 2 ranks is gone or late; memory can't be shared without it"):
        SharedMemory()


def test_a_rank_that_dies_while_transports_are_chosen_is_no_reason_to_try_another():
    with Ranks(dead_before_memory_is_shared, 2, timeout_s=5.0) as started:
        started.answer(0, 20)


def left_because_another_died(rank, ranks, kind):
    """Rank 1 dies, rank 0 leaves for that, and rank 2 waits for rank 0's rows first."""
    mixing = Mixing(ring_plan(ranks, rank), KINDS[kind](deadline_s=5.0), 3)
    mixing.step()
    if rank < 2:
        time.sleep(0.7 if rank == 1 else 1.0)
        os._exit(1)
    mixing.start()
    time.sleep(1.5)
    with pytest.raises(PeerLost) as raised:
        mixing.finish()
    return str(raised.value)


@pytest.mark.parametrize("kind", KINDS)
def test_a_rank_that_left_because_another_died_does_not_take_the_blame_alone(kind):
    with Ranks(left_because_another_died, 3, kind) as started:
        said = started.answer(2, 20)
    assert said.startswith(("neighbor ranks 0, 1 are gone", "one of the ranks [0, 1] is gone"))


def one_late_and_one_gone_quiet(rank, ranks):
    plan = ring_plan(ranks, rank)
    mixing = Mixing(plan, PointToPoint(deadline_s=2.0), 3)
    mixing.step()
    if rank == 1:
        time.sleep(1.5)  # late, but in time
    if rank == 2:
        time.sleep(6)
        return 0.0
    begun = time.monotonic()
    with pytest.raises(PeerLost, match="neighbor rank 2 is gone or late: no rows were" if rank == 0 else "neighbor rank"):
        mixing.step()
    return time.monotonic() - begun


def test_a_deadline_is_for_all_neighbors_together():
    with Ranks(one_late_and_one_gone_quiet, 3) as started:
        assert 1.9 < started.answer(0, 20) < 3.2  # not 1.5 s for one and 2 s for the other


def waiting_in_other_orders(rank, ranks):
    plan, transport = ring_plan(ranks, rank), SharedMemory()
    x = torch.full((len(plan.agents), 2), float(rank + 1))
    handles = [neighbor_allreduce(x * factor, plan, transport=transport, async_op=True) for factor in (1, 10)]
    handles[rank].wait()
    third = neighbor_allreduce(x * 100, plan, transport=transport, async_op=True)
    with pytest.raises(
        RuntimeError, match=r"rank \d's exchange 3 is of other buffers than this rank's: begin and finish exchanges in one"
    ):
        third.wait()
    with pytest.raises(PeerLost, match="start again"):
        neighbor_allreduce(x, plan, transport=transport)


def test_handles_that_ranks_wait_for_in_different_orders_are_an_error_and_not_rows_of_another_exchange():
    together(waiting_in_other_orders, 2)


def many_under_way(rank, ranks):
    plan, transport = ring_plan(ranks, rank), SharedMemory()
    x = torch.arange(AGENTS, dtype=torch.float64)[plan.agents, None]
    once = neighbor_allreduce(x, plan, transport=transport)
    for _ in range(3):
        handles = [neighbor_allreduce(x * k, plan, transport=transport, async_op=True) for k in range(20)]
        if rank:
            time.sleep(0.05)  # the other one is ahead by more exchanges than words are kept for
        for k, handle in enumerate(handles):
            torch.testing.assert_close(handle.wait(), once * k)
        assert handles[0].wait() is handles[0].wait()  # waiting again is nothing
        assert torch.equal(handles[0].out, torch.zeros_like(x))


def test_more_exchanges_under_way_than_are_remembered_are_all_right():
    together(many_under_way, 2)


def hurried(rank, ranks):
    """Each rank pauses at other steps, so that each is early and late in turn, and writes its next rows as soon as it may."""
    # directed: a rank's last row is read by the next rank and needs nobody, so it could be mixed, and overwritten, too early
    one_way = topology.from_edges([(i, (i - 1) % AGENTS) for i in range(AGENTS)], directed=True)
    weights = topology.uniform(one_way)
    plan = ExchangePlan(weights, owners_of(ranks), rank)
    random = np.random.default_rng(rank)
    for kind in (SharedMemory, PointToPoint):
        mixing = Mixing(plan, kind(), 50, torch.float64)
        for step in range(50):
            rows = torch.arange(AGENTS, dtype=torch.float64) * (1 + step) + step
            mixing.rows.copy_(rows[plan.agents, None].expand(-1, 50))
            mixing.start()
            if random.random() < 0.2:
                time.sleep(5e-3)
            expected = torch.from_numpy(weights @ rows.numpy())[plan.agents, None].expand(-1, 50)
            torch.testing.assert_close(mixing.finish(), expected, rtol=1e-13, atol=1e-12)


def test_a_rank_that_writes_its_next_rows_early_changes_nobodys_sums():
    together(hurried, 3)


def unlike(rank, ranks, kind):
    transport, plan, other = KINDS[kind](), ring_plan(ranks, rank), 1 - rank
    with pytest.raises(
        ValueError, match=rf"rank {other} exchanges rows of {3 + other} numbers of 32 bits, this rank of {3 + rank} of 32"
    ):
        neighbor_allreduce(torch.ones(len(plan.agents), 3 + rank), plan, transport=transport)
    x = torch.ones(len(plan.agents), 4 - 2 * rank, dtype=(torch.float32, torch.float64)[rank])  # as many bytes
    with pytest.raises(ValueError, match=rf"rank {other} exchanges rows of {4 - 2 * other} numbers of {32 + 32 * other} bits"):
        neighbor_allreduce(x, plan, transport=transport)
    graph = topology.erdos_renyi(AGENTS, degree=12, seed=rank)
    own = ExchangePlan(topology.metropolis_hastings(graph), owners_of(ranks), rank)
    with pytest.raises(ValueError, match=f"rank {other}'s plan is of other weights or owners than this rank's"):
        neighbor_allreduce(torch.ones(len(own.agents), 2), own, transport=transport)
    if isinstance(transport, PointToPoint):
        with pytest.raises(ValueError, match="random graphs of one seed"):
            neighbor_gather(torch.ones(len(own.agents), 2), own, transport)
    x = torch.ones(len(plan.agents), 4)
    torch.testing.assert_close(neighbor_allreduce(x, plan, transport=transport), x)  # and all go on
    dist.barrier()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "two ranks a host"])
def test_ranks_whose_rows_or_graphs_are_not_alike_hear_of_it(kind):
    together(unlike, 2, kind)


def absent(rank, ranks):
    plan, transport = ring_plan(ranks, rank), SharedMemory(deadline_s=1.0)
    x = torch.ones(len(plan.agents), 4)
    neighbor_allreduce(x, plan, transport=transport)
    if rank == 1:
        time.sleep(4)
        return 0.0
    begun = time.monotonic()
    with pytest.raises(PeerLost, match="gone or late"):
        neighbor_allreduce(x[:, :3], plan, transport=transport)  # of a new width, for which memory has to be shared
    return time.monotonic() - begun


def test_a_rank_that_does_not_come_when_memory_is_shared_is_an_error_at_the_deadline():
    assert 1.0 <= together(absent, 2)[0] < 3.9  # it is there again after four seconds


def without_agents(rank, ranks):
    owners = np.ones(AGENTS, int)  # all of rank 1
    weights = topology.metropolis_hastings(topology.ring(AGENTS))
    if rank == 0:
        with pytest.raises(ValueError, match="rank 0 owns none of 24 agents; give it some, or make a group"):
            ExchangePlan(weights, owners, rank)
        return
    with pytest.raises(ValueError, match="transport 'shared memory' is for all ranks of its group"):
        neighbor_allreduce(torch.ones(AGENTS, 2), ExchangePlan(weights, owners, rank))  # at once, though rank 0 never comes
    group = dist.new_group([1], use_local_synchronization=True)
    plan = ExchangePlan(weights, np.zeros(AGENTS, int), 0)
    assert torch.equal(neighbor_allreduce(torch.ones(AGENTS, 2), plan, transport=PointToPoint(group)), torch.ones(AGENTS, 2))


def test_a_rank_without_agents_keeps_nobody_waiting():
    together(without_agents, 2)


def of_another_way(rank, ranks):
    plan, transport = ring_plan(ranks, rank), SharedMemory()
    x = torch.ones(len(plan.agents), 2)
    with pytest.raises(ValueError, match="gradients travel point to point; got transport 'shared memory'"):
        neighbor_mix(x, plan, transport)
    with pytest.raises(ValueError, match=r"x has shape \(5, 2\), but rank . has 12 agents"):
        neighbor_gather(x[:5], plan, PointToPoint())
    with pytest.raises(ValueError, match=r"x must be a matrix \[n, P\]; got shape \(12,\)"):
        neighbor_mix(x[:, 0], plan, PointToPoint())
    with pytest.raises(ValueError, match="float32 or float64"):
        neighbor_mix(x.long(), plan, PointToPoint())
    dist.barrier()


def test_gradients_refuse_rows_and_transports_that_do_not_fit():
    together(of_another_way, 2)


def without_room(rank, ranks):
    if rank == 0:

        def refuse(*_):
            raise OSError(28, "No space left on device")

        os.memfd_create = refuse
    with pytest.raises(OSError, match="needs all ranks on one Linux host"):
        SharedMemory()
    return choose_transport(ring_plan(ranks, rank)).name


def test_shared_memory_that_one_rank_cannot_have_is_had_by_none_and_another_way_is_taken():
    assert together(without_room, 2) == ["point-to-point"] * 2


def killed_while_mixing(rank, ranks):
    mixing = Mixing(ring_plan(ranks, rank), SharedMemory(deadline_s=2.0), 1000)
    mixing.step()
    dist.barrier()
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    with pytest.raises(PeerLost, match="neighbor rank 1 is gone: came to exchange 1 of 2"):
        mixing.step()
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if "/dev/shm/" in line]


def test_memory_that_killed_ranks_shared_leaves_no_file():
    before = set(os.listdir("/dev/shm"))
    with Ranks(killed_while_mixing, 2) as started:
        assert started.answer(0, 20) == []
        assert {name for name in set(os.listdir("/dev/shm")) - before if "marl" in name} == set()


def edges_of_the_usual(rank, ranks):
    for kind in KINDS.values():
        mix_at_the_edge(rank, kind())


def mix_at_the_edge(rank, transport):
    # nobody has a neighbor on another rank, agent 0 none at all, and the row of agent 1 is empty: it keeps nothing, not even its own
    apart = sp.lil_matrix((6, 6))
    apart[0, 0] = 1
    apart[2:, 2:] = np.kron(np.eye(2), np.full((2, 2), 0.5))
    plan = ExchangePlan(apart.tocsr(), np.array([0, 0, 1, 1, 2, 2]), rank)
    assert plan.neighbors == []
    x = torch.arange(6.0)[plan.agents, None]
    expected = torch.tensor([[0.0, 0.0, 2.5, 2.5, 4.5, 4.5]])[0, plan.agents, None]
    assert torch.equal(neighbor_allreduce(x, plan, transport=transport), expected)
    # rank 2 hears and says nothing, the others do, whose interior is empty
    pair = sp.csr_matrix(np.array([[0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0, 1.0]]))
    plan = ExchangePlan(pair, np.arange(3), rank)
    x = torch.tensor([[1.0], [3.0], [7.0]], dtype=torch.float64)[plan.agents]
    for width in (1, 5, 1, 0):  # widths in turn, one of no columns
        wide = x.expand(-1, width)  # strides of 0
        found = neighbor_allreduce(wide, plan, transport=transport)
        assert torch.equal(found, torch.tensor([2.0, 2.0, 7.0], dtype=torch.float64)[plan.agents, None].expand(-1, width))
    assert len(plan.mixings) == 3  # width 1 was used again
    several = torch.stack([x, 2 * x], 2).expand(-1, 3, -1)[:, ::2].transpose(1, 2)  # [1, 2, 2], not contiguous
    out = torch.empty(2, 2, len(x), dtype=torch.float64).permute(2, 0, 1)
    assert neighbor_allreduce(several, plan, transport=transport, out=out) is out
    torch.testing.assert_close(out[0, :, 0], found.new_tensor([2.0, 4.0] if rank < 2 else [7.0, 14.0]))
    # a matrix and buffers that were made in inference mode serve outside it, too
    single = x.float()
    with torch.inference_mode():
        first = neighbor_allreduce(single, plan, transport=transport)
    assert torch.equal(neighbor_allreduce(single, plan, transport=transport), first)
    # what lies in a buffer from before doesn't matter, whatever it is
    poisoned = neighbor_allreduce(torch.full_like(x, torch.nan), plan, transport=transport)
    assert poisoned.isnan().all()
    assert all(neighbor_allreduce(x, plan, transport=transport).isfinite().all() for _ in range(2))


def test_agents_ranks_and_rows_at_the_edge_of_the_usual_mix_as_others_do():
    together(edges_of_the_usual, 3)


def refused(rank, ranks):
    plan, other = ring_plan(ranks, rank), ring_plan(ranks, 1 - rank)
    few = ExchangePlan(topology.metropolis_hastings(topology.ring(AGENTS)), np.zeros(AGENTS, int), 0)
    x = torch.ones(len(plan.agents), 2)
    for kind in KINDS.values():
        transport = kind()
        with pytest.raises(ValueError, match=f"rank {1 - rank}'s"):
            Mixing(other, transport, 2)
        if kind is not PointToPoint:
            with pytest.raises(ValueError, match=f"this is rank {rank} of 2, and the plan is rank 0's for 1 ranks with agents"):
                Mixing(few, transport, 2)
        for wrong, options, said in (
            (x.bfloat16(), {}, "float32 or float64, to be averaged; got torch.bfloat16"),
            (x.clone().requires_grad_(), {}, "neighbor_mix"),
            (x, {"out": x.double()}, "out must be like x"),
            (x, {"out": x[:, :1]}, "out must be like x"),
        ):
            with pytest.raises(ValueError, match=said):
                neighbor_allreduce(wrong, plan, transport=transport, **options)
        with torch.no_grad():
            torch.testing.assert_close(neighbor_allreduce(x.clone().requires_grad_(), plan, transport=transport), x)
    with pytest.raises(ValueError, match="shared memory mixes rows in the memory of the host; got device cuda"):
        Mixing(plan, SharedMemory(), 2, device="cuda")
    platform.machine = lambda: "aarch64"
    with pytest.raises(OSError, match="order of stores, and this is aarch64; take point-to-point"):
        SharedMemory()
    dist.barrier()


def test_plans_and_rows_that_do_not_fit_are_refused_before_anything_is_sent():
    together(refused, 2)


def test_the_mpi_transport_says_what_it_needs(monkeypatch):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(ConfigError, match=r"needs mpi4py and an MPI library: pip install 'marl_hpc\[mpi\]'"):
        Mpi()


def test_one_rank_alone_is_refused_a_plan_of_several():
    plan = ring_plan(2, 0)
    with pytest.raises(ValueError, match="this is rank 0 of 1, and the plan is rank 0's for 2 ranks with agents"):
        Mixing(plan, Nobody(), 2)
    with pytest.raises(ValueError, match="whom transport Nobody doesn't reach"):
        neighbor_gather(torch.ones(len(plan.agents), 2), plan, Nobody())
