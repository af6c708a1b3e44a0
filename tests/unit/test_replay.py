"""Replay tables: what is drawn, how often, with which weights, and that nothing is torn or lost on the way through a checkpoint."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.futures import Future

from marl_hpc.comm.peers import LocalPeer
from marl_hpc.metrics import Clock
from marl_hpc.roles.clients import DatasetClient
from marl_hpc.roles.dataset import DatasetShard
from marl_hpc.storage.replay import ReplayTable, SumTree
from marl_hpc.types import ReplayConfig

T, B = 8, 2


def fragment(number, steps=T, copies=B, stride=1):
    """Rows [T, B, 3] that say (fragment, step, copy), and with a stride memories [C, B, 1, 2] that say (fragment, chunk)."""
    rows = torch.zeros(steps, copies, 3, dtype=torch.uint8)
    rows[..., 0], rows[..., 1], rows[..., 2] = number, torch.arange(steps)[:, None], torch.arange(copies)
    if stride == 1:
        return {"rows": rows}
    memory = torch.zeros(steps // stride, copies, 1, 2)
    memory[..., 0], memory[..., 1] = number, torch.arange(steps // stride)[:, None, None]
    return {"rows": rows, "p/memory": memory}


def table_of(fragments=3, share=1.0, **options):
    config = {"capacity": fragments * T * B, "batch": 4, "length": 3, **options}
    return ReplayTable(ReplayConfig(**config), share)


def filled(table, count):
    for number in range(count):
        table.insert(fragment(number, stride=table.config.stride))
    return table


def drawn(table, updates, batch, seed=0):
    return table.draw(np.random.default_rng(seed), updates, batch)


def items_of(rows):
    """[(fragment, first step, copy)] of drawn rows [L, U, S, 3]; each must be consecutive steps of one fragment and copy."""
    flat = rows.flatten(1, 2).int()
    assert (flat[:, :, 0] == flat[0, :, 0]).all()
    assert (flat[:, :, 2] == flat[0, :, 2]).all()
    assert torch.equal(flat[:, :, 1], flat[0, :, 1] + torch.arange(len(flat))[:, None].int())
    return [tuple(x) for x in flat[0].tolist()]


def test_draws_are_uniform_over_all_sequences():
    table = filled(table_of(), 3)
    counts = Counter(items_of(drawn(table, 100, 360)["rows"]))
    number = 3 * (T - 3 + 1) * B
    assert len(counts) == number
    expected = 36_000 / number
    assert sum((x - expected) ** 2 / expected for x in counts.values()) < 75  # chi-square of 35 degrees of freedom: 1 in 10 000
    assert torch.equal(drawn(table, 2, 5)["weight"], torch.ones(1, 2, 5))


@pytest.mark.parametrize(("alpha", "beta"), [(0.6, 0.4), (1.0, 1.0), (0.5, 0.0)])
def test_draws_are_in_proportion_to_priorities_and_weights_make_up_for_it(alpha, beta):
    """Schaul et al. 2016: P(i) = p_i^α / Σ p^α, w_i = (N P(i))^-β; the client divides by the largest."""
    table = filled(table_of(priority_exponent=alpha, importance_exponent=beta), 3)
    number = 3 * (T - 3 + 1) * B
    priorities = np.random.default_rng(1).gamma(1.0, size=number) * 3
    table.set_priorities(torch.arange(number), torch.from_numpy(priorities))
    probability = (priorities + 1e-6) ** alpha / ((priorities + 1e-6) ** alpha).sum()
    draw = drawn(table, 50, 800)
    counts = np.bincount(draw["place"].flatten().numpy(), minlength=number)
    # strata: every place is drawn as often as it should be, up to two draws
    assert np.abs(counts - 40_000 * probability).max() <= 2
    weights = (number * probability) ** -beta
    place = draw["place"].flatten().numpy()
    np.testing.assert_allclose(draw["weight"].flatten().numpy(), weights[place], rtol=1e-5)
    first = draw["place"][0, 0].numpy()
    assert np.corrcoef(np.arange(800), first)[0, 1] < 0.2  # strata are shuffled among the minibatches


def test_places_are_those_of_the_sequences_drawn():
    table = filled(table_of(priority_exponent=1.0), 3)
    only = 17
    table.set_priorities(torch.arange(36), torch.zeros(36, dtype=torch.float64))
    table.set_priorities(torch.tensor([only]), torch.tensor([1e9], dtype=torch.float64))
    draw = drawn(table, 1, 50)
    assert set(draw["place"].flatten().tolist()) == {only}
    assert len(set(items_of(draw["rows"]))) == 1


def test_new_sequences_come_with_the_highest_priority_so_far():
    table = filled(table_of(priority_exponent=0.5), 1)
    table.set_priorities(torch.arange(12), torch.full((12,), 0.01))
    table.set_priorities(torch.tensor([3]), torch.tensor([9.0]))
    table.insert(fragment(1))
    counts = np.bincount(drawn(table, 1, 6000)["place"].flatten().numpy(), minlength=24)
    total = 13 * 3 + 11 * 0.1
    assert counts[12:] == pytest.approx(np.full(12, 6000 * 3 / total), abs=2)
    assert counts[3] == pytest.approx(6000 * 3 / total, abs=2)


@settings(max_examples=60, deadline=None)
@given(
    inserted=st.integers(1, 12), fragments=st.integers(1, 4), length=st.integers(1, T), stride=st.sampled_from([1, 4]),
    priority=st.sampled_from([0.0, 1.0]),
)  # fmt: skip
def test_sequences_never_cross_from_one_fragment_into_another(inserted, fragments, length, stride, priority):
    table = filled(table_of(fragments, length=length, stride=stride, priority_exponent=priority), inserted)
    draw = drawn(table, 20, 50)
    items = items_of(draw["rows"])
    kept = range(max(0, inserted - fragments), inserted)
    assert {number for number, _, _ in items} <= set(kept)
    assert all(start % stride == 0 and start + length <= T for _, start, _ in items)
    assert draw["rows"].shape == (length, 20, 50, 3)
    if stride == 4:
        memory = draw["p/memory"]
        assert memory.shape == (1, 20, 50, 1, 2)
        assert memory[0].flatten(0, 1)[:, 0].tolist() == [[number, start // 4] for number, start, _ in items]
    if len(kept) * table.items <= 20:  # 1000 draws miss one of 20 items once in 10^22 times
        assert len(set(items)) == len(kept) * table.items


def test_the_oldest_fragments_go_when_capacity_is_reached():
    table = table_of(3)
    for number in range(8):
        table.insert(fragment(number))
        kept = list(range(max(0, number - 2), number + 1))
        assert table.steps == len(kept) * T * B <= table.config.capacity
        assert sorted({item[0] for item in items_of(drawn(table, 1, 400)["rows"])}) == kept


@pytest.mark.parametrize(("capacity", "share", "fragments"), [(48, 1.0, 3), (63, 1.0, 3), (96, 0.5, 3), (96, 0.25, 1), (5, 1.0, 1)])
def test_capacity_is_shared_out_among_shards_and_holds_a_fragment_at_least(capacity, share, fragments):
    table = filled(table_of(capacity=capacity, share=share), 9)
    assert table.steps == fragments * T * B


@given(
    changes=st.lists(st.tuples(st.integers(0, 10), st.floats(0, 1e3)), min_size=1, max_size=30), share=st.floats(0, 1, exclude_max=True)
)  # fmt: skip
def test_sum_tree_finds_what_the_running_sum_passes(changes, share):
    tree, plain = SumTree(11), np.zeros(11)
    for place, value in changes:
        tree.set(np.array([place]), np.array([value]))
        plain[place] = value
    assert tree.total == pytest.approx(plain.sum())
    if plain.sum() > 0:
        amount = share * tree.total
        found = int(tree.find(np.array([amount]))[0])
        assert plain[found] > 0
        before = plain[:found].sum()
        assert before - 1e-9 * tree.total <= amount <= before + plain[found] + 1e-9 * tree.total


@pytest.mark.parametrize("priority", [0.0, 0.7])
@pytest.mark.parametrize("inserted", [0, 2, 7])
def test_loaded_table_goes_on_to_the_bit(priority, inserted):
    def fresh():
        return table_of(priority_exponent=priority, stride=4, length=4)

    def go_on(table, start):
        for number in range(start, start + 5):
            table.insert(fragment(number, stride=4))
            draw = drawn(table, 2, 6, seed=number)
            yield draw
            if priority:
                table.set_priorities(draw["place"], torch.from_numpy(np.random.default_rng(number).random((1, 2, 6)) * 4))

    table = fresh()
    list(go_on(table, 0)) if inserted == 7 else filled(table, inserted)
    state = {name: x.clone() for name, x in table.state().items()}
    other = fresh()
    other.load_state(state)
    assert other.steps == table.steps
    for one, two in zip(go_on(table, inserted), go_on(other, inserted), strict=True):
        assert one.keys() == two.keys()
        assert all(torch.equal(x, two[name]) for name, x in one.items())
    assert all(torch.equal(x, other.state()[name]) for name, x in table.state().items())


def test_a_loaded_table_shares_no_memory_with_the_one_it_is_from():
    table = filled(table_of(priority_exponent=1.0), 2)
    other = table_of(priority_exponent=1.0)
    other.load_state(table.state())
    table.insert(fragment(2))
    table.insert(fragment(3))
    table.set_priorities(torch.arange(12), torch.full((12,), 50.0))
    assert set(items_of(drawn(other, 1, 400)["rows"])) == {(n, t, b) for n in (0, 1) for t in range(6) for b in range(2)}
    assert (drawn(other, 1, 400)["weight"] == 1).all()


# how much is drawn


@pytest.mark.parametrize("ratio", [0.25, 1.0, 8.0, 40.0])
def test_a_step_is_drawn_samples_per_insert_times_on_average(ratio):
    config = ReplayConfig(capacity=1000, batch=4, length=3, samples_per_insert=ratio)
    inserted = 480
    assert config.updates(inserted) * config.batch * config.length / inserted == pytest.approx(ratio, rel=0.05)


def test_there_is_one_gradient_step_an_iteration_at_least():
    assert ReplayConfig(capacity=1000, batch=256, length=1, samples_per_insert=0.01).updates(16) == 1


# through shards and the client


class World:
    rank, patience_s = 0, 5.0

    def stamp(self, allow_s=None):
        pass


def shards_of(count, workers, config, start=0):
    return [
        DatasetShard(
            i, tuple(range(i, workers, count)), 1, 2, start,
            {"a": ReplayTable(config, len(range(i, workers, count)) / workers)}, seed=5,
        )
        for i in range(count)
    ]  # fmt: skip


def insert(shard, worker, sequence):
    rows = {"a": fragment(10 * worker + sequence)}
    assert shard.insert(worker, sequence, rows, torch.zeros(0, 2), sequence) is True


def value(answer):
    return answer.wait() if isinstance(answer, Future) else answer


def test_a_draw_waits_for_every_worker_and_does_not_depend_on_who_came_first():
    config = ReplayConfig(capacity=1000, batch=6, length=3)
    results = []
    for order in ((0, 1), (1, 0)):
        (shard,) = shards_of(1, 2, config)
        answer = shard.draw(0, "a", 2, 6)
        insert(shard, order[0], 0)
        assert isinstance(answer, Future)
        assert not answer.done()
        insert(shard, order[1], 0)
        results.append(value(answer)["items"])
        assert shard.tables["a"].inserted == 2
    assert all(torch.equal(x, results[1][name]) for name, x in results[0].items())


def test_replicas_that_ask_one_after_the_other_get_the_same_draw_and_nothing_enters_twice():
    (shard,) = shards_of(1, 1, ReplayConfig(capacity=1000, batch=6, length=3))
    insert(shard, 0, 0)
    first, second = (shard.draw(0, "a", 2, 6)["items"] for _ in range(2))
    assert all(torch.equal(x, second[name]) for name, x in first.items())
    assert shard.tables["a"].inserted == 1
    shard.acknowledge(0, "a", 0)
    insert(shard, 0, 1)
    assert sorted({item[0] for item in items_of(shard.draw(1, "a", 20, 20)["items"]["rows"])}) == [0, 1]


def test_nothing_is_drawn_before_enough_is_there():
    (shard,) = shards_of(1, 1, ReplayConfig(capacity=1000, batch=6, length=3, starts=2 * T * B + 1))
    there = []
    for k in range(4):
        insert(shard, 0, k)
        there.append(bool(shard.draw(k, "a", 1, 6)["items"]))
        shard.acknowledge(k, "a", 0)
    assert there == [False, False, True, True]


def test_drawing_begins_when_the_table_is_full_even_where_whole_fragments_do_not_reach_starts():
    """Capacity for 60 steps holds three fragments of 16: 60 steps are never there."""
    (shard,) = shards_of(1, 1, ReplayConfig(capacity=60, batch=6, length=3, starts=60))
    there = []
    for k in range(4):
        insert(shard, 0, k)
        there.append(bool(shard.draw(k, "a", 1, 6)["items"]))
        shard.acknowledge(k, "a", 0)
    assert there == [False, False, True, True]


@pytest.mark.parametrize(("shards", "batch"), [(1, 6), (2, 6), (3, 7), (3, 2)])
def test_parts_of_a_draw_are_together_the_batch_and_priorities_reach_their_shard(shards, batch):
    workers = 3
    config = ReplayConfig(capacity=1000, batch=batch, length=3, priority_exponent=1.0)
    tables = shards_of(shards, workers, config)
    client = DatasetClient([LocalPeer(f"dataset/{i}", shard) for i, shard in enumerate(tables)], World(), Clock(), B, [0, 1])
    for worker in range(workers):
        insert(tables[worker % shards], worker, 0)
    whole = client.draw(0, "a", config, 48, 0, 1)
    updates = config.updates(48)
    assert (whole["weight"] == 1).all()
    assert whole["place"].shape == whole["weight"].shape == whole["shard"].shape == (1, updates, batch)
    parts = [client.draw(0, "a", config, 48, part, 2) for part in range(2)]
    for name, x in whole.items():
        assert torch.equal(torch.cat([part[name] for part in parts], 2), x)
    given = torch.rand(updates, batch, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 2
    client.set_priorities("a", whole["shard"][0], whole["place"][0], given)
    for i, shard in enumerate(tables):
        last = {
            int(p): float(x)
            for s, p, x in zip(*(y.flatten() for y in (whole["shard"], whole["place"], given)), strict=True)
            if s == i
        }
        expected = np.ones(shard.tables["a"].items * len(shard.workers))
        for place, x in last.items():
            expected[place] = x + 1e-6
        np.testing.assert_allclose(shard.tables["a"].tree.get(np.arange(len(expected))), expected)


def test_weights_are_relative_to_the_largest_of_all_shards():
    """Two sequences a shard; P = 1/2, 1/2 in the first and 1/10, 9/10 in the second, so (N P)^-β are 1, 1, √5 and √(5/9)."""
    config = ReplayConfig(capacity=1000, batch=80, length=T, priority_exponent=1.0, importance_exponent=0.5)

    class Ready:
        """A shard that answers from its table."""

        def __init__(self, likely):
            self.table = filled(ReplayTable(config, 0.5), 1)
            self.table.set_priorities(torch.arange(2), torch.tensor([1.0, likely], dtype=torch.float64))

        def draw(self, iteration, interface, updates, batch):
            return {"items": drawn(self.table, updates, batch)}

    client = DatasetClient(
        [LocalPeer(f"dataset/{i}", Ready(likely)) for i, likely in enumerate((1.0, 9.0))], World(), Clock(), B, [0, 1]
    )
    whole = client.draw(0, "a", config, 32, 0, 1)
    found = {}
    for shard, place, weight in zip(*(whole[name].flatten().tolist() for name in ("shard", "place", "weight")), strict=True):
        found.setdefault((shard, place), set()).add(round(weight, 4))
    assert found == {(0, 0): {0.4472}, (0, 1): {0.4472}, (1, 0): {1.0}, (1, 1): {0.3333}}


def test_priorities_of_items_that_were_overwritten_meanwhile_change_nothing():
    config = ReplayConfig(capacity=8, batch=4, length=1, priority_exponent=1.0)
    table = ReplayTable(config, 1.0)

    def fragment(number):
        return {"rows": torch.full((2, 2, 1), number, dtype=torch.uint8)}

    for number in range(3):  # two fragments fit: the first is gone
        table.insert(fragment(number))
    drawn = table.draw(np.random.default_rng(0), 4, 16)
    places, rows = drawn["place"].flatten(), drawn["rows"].flatten()
    table.insert(fragment(3))  # instead of fragment 1
    table.set_priorities(places, torch.full((len(places),), 5.0))
    assert set(rows.tolist()) == {1, 2}
    assert set(table.tree.get(np.arange(4))) == {5.000001}
    assert set(table.tree.get(np.arange(4, 8))) == {1.0}


@pytest.mark.parametrize("spilled", [False, True])
def test_a_million_transitions_stay_within_their_bytes(tmp_path, spilled):
    limit = 4_000_000
    config = ReplayConfig(capacity=10**9, batch=4, length=1)
    table = ReplayTable(config, 1.0, limit, tmp_path / "spill" if spilled else None)
    for number in range(100):
        table.insert({"rows": torch.full((100, 100, 16), number, dtype=torch.uint8)})
    held = sum(ring.nbytes for ring in table.rings.values())
    assert limit - 160_000 < held <= limit
    assert table.steps == held // 16
    assert isinstance(table.rings["rows"], np.memmap) == spilled
    drawn = table.draw(np.random.default_rng(0), 2, 500)["rows"]
    assert set(drawn.unique().tolist()) == set(range(75, 100))  # the newest of a million
    assert list(tmp_path.rglob("replay-*")) == []  # its file goes with the process, however that ends
    again = ReplayTable(config, 1.0, limit, tmp_path / "spill" if spilled else None)
    again.load_state(table.state())
    assert isinstance(again.rings["rows"], np.memmap) == spilled
    assert torch.equal(again.draw(np.random.default_rng(0), 2, 500)["rows"], drawn)


def test_bytes_that_hold_no_fragment_are_refused():
    table = ReplayTable(ReplayConfig(capacity=100, batch=4, length=1), 1.0, 10)
    with pytest.raises(ValueError, match=r"dataset.replay_bytes=10 .* 16 bytes"):
        table.insert({"rows": torch.zeros(2, 2, 4, dtype=torch.uint8)})
