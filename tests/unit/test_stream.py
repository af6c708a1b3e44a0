"""The queue of asynchronous training: every item takes effect once, whoever dies, and nobody waits without being told for whom."""

import math
import random
from collections import Counter

import pytest
import torch
from torch.futures import Future

from marl_hpc.roles.stream import StreamShard
from marl_hpc.storage.replay import ReplayTable
from marl_hpc.types import ReplayConfig


def rows_of(worker, sequence, copies=4, steps=2):
    """One interface's fragment [T, B, 1], each number saying who collected it."""
    number = worker * 10_000 + sequence
    return {"a": {"rows": torch.full((steps, copies, 1), number)}}


def insert(shard, worker, sequence, version=0, episodes=0):
    return shard.insert(worker, sequence, rows_of(worker, sequence), torch.full((episodes, 3), float(sequence)), {"a": version})


def shard_of(workers=(0,), learners=1, capacity=2, **options):
    return StreamShard(0, workers, {"a": learners}, capacity, **options)


def parked(answer):
    return isinstance(answer, Future) and not answer.done()


def value(answer):
    assert not parked(answer)
    return answer.value() if isinstance(answer, Future) else answer


def items(answer):
    return [tuple(item[0]) for item in value(answer)]


def test_a_lease_waits_for_items_and_gives_what_there_is():
    shard = shard_of(learners=2)
    answer = shard.lease("a", 0, 5, 0)
    assert parked(answer)
    assert insert(shard, 0, 0, episodes=3) is True
    assert items(answer) == [(0, 0, 0), (0, 0, 1)]
    (_, first, episodes, _, steps), (_, second, others, _, _) = value(answer)
    assert first["rows"].shape == second["rows"].shape == (2, 2, 1)
    assert steps == 4
    assert (len(episodes), len(others)) == (3, 0)  # episodes are told once


def test_room_comes_when_every_item_of_a_fragment_is_acknowledged():
    shard = shard_of(learners=2, capacity=1)
    insert(shard, 0, 0)
    waiting = insert(shard, 0, 1)
    assert parked(waiting)
    leased = items(shard.lease("a", 0, 2, 0))
    shard.acknowledge("a", 0, leased[:1])
    assert parked(waiting)
    shard.acknowledge("a", 0, leased[1:])
    assert value(waiting) is True


def test_room_is_in_bytes_too_and_a_single_fragment_always_fits():
    size_bytes = rows_of(0, 0)["a"]["rows"].nbytes
    shard = shard_of(workers=(0, 1), capacity=5, capacity_bytes=1.5 * size_bytes)
    assert insert(shard, 0, 0) is True
    waiting = insert(shard, 1, 0)
    assert parked(waiting)
    assert shard.counts()["size_bytes"] == size_bytes
    shard.acknowledge("a", 0, items(shard.lease("a", 0, 1, 0)))
    assert value(waiting) is True


def test_what_a_lost_learner_held_is_issued_again_first_and_its_late_word_counts_nothing():
    shard = shard_of(capacity=4)
    for sequence in range(3):
        insert(shard, 0, sequence)
    lost = items(shard.lease("a", 0, 2, 0))
    shard.enlist(0)
    again = items(shard.lease("a", 1, 2, 0))
    assert again == lost == [(0, 0, 0), (0, 1, 0)]
    shard.acknowledge("a", 0, lost)  # learner 0's lease has ended
    assert insert(shard, 0, 3) is True
    assert parked(insert(shard, 0, 4))
    shard.acknowledge("a", 1, again)
    shard.acknowledge("a", 1, again)
    assert items(shard.lease("a", 0, 5, 0)) == [(0, 2, 0), (0, 3, 0), (0, 4, 0)]


def test_data_of_policies_too_old_is_passed_over_and_counted_and_makes_room():
    shard = shard_of(capacity=2, max_staleness=3)
    insert(shard, 0, 0, version=1)
    insert(shard, 0, 1, version=4)
    waiting = insert(shard, 0, 2, version=9)
    assert items(shard.lease("a", 0, 5, 7)) == [(0, 1, 0)]
    assert value(waiting) is True
    assert shard.counts()["passed_over"] == {"a": 1}
    assert items(shard.lease("a", 0, 5, 12)) == [(0, 2, 0)]


def test_a_fragment_that_comes_twice_is_there_once_and_a_gap_is_refused():
    shard = shard_of()
    insert(shard, 0, 0)
    assert insert(shard, 0, 0) is True
    assert items(shard.lease("a", 0, 9, 0)) == [(0, 0, 0)]
    with pytest.raises(ValueError, match="fragment 3; dataset/0 expects 1"):
        insert(shard, 0, 3)


def test_at_the_end_nobody_waits():
    shard = shard_of(capacity=1)
    insert(shard, 0, 0)
    shard.acknowledge("a", 0, items(shard.lease("a", 0, 1, 0)))
    insert(shard, 0, 1)
    writer = insert(shard, 0, 2)
    shard.lease("a", 0, 1, 0)
    reader = shard.lease("a", 0, 1, 0)
    assert parked(writer)
    assert parked(reader)
    shard.end()
    assert value(writer) is True
    assert value(reader) == []


def test_an_error_message_can_say_who_has_what():
    shard = shard_of(workers=(0, 3), learners=2, capacity=3)
    insert(shard, 3, 0)
    shard.lease("a", 1, 1, 0)
    text = shard.describe()
    assert "a: 1 items queued, 1 with learners [1]" in text
    assert "rollout/0 delivered 0" in text
    assert "rollout/3 delivered 1" in text


def test_replay_takes_every_fragment_in_and_items_carry_no_rows():
    table = ReplayTable(ReplayConfig(capacity=100, batch=4, length=1, starts=8), 1.0)
    shard = shard_of(learners=2, tables={"a": table})
    assert shard.draw(0, "a", 1, 4) == {"items": {}}
    insert(shard, 0, 0)
    leased = value(shard.lease("a", 0, 2, 0))
    assert [rows for _, rows, _, _, _ in leased] == [{}, {}]
    assert shard.draw(0, "a", 2, 4)["items"]["rows"].shape == (1, 2, 4, 1)


@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_lost_or_takes_effect_twice_in_ten_thousand_operations(seed):
    """Producers die and are replaced, learners die while they hold leases, everything is repeated now and then."""
    chance = random.Random(seed)
    workers, learners, capacity = (0, 1, 2), 2, 3
    shard = shard_of(workers, learners, capacity)
    inserting = dict.fromkeys(workers)  # a writer's open answer
    sequence = dict.fromkeys(workers, 0)
    holding = {learner: [] for learner in range(learners)}
    asking = dict.fromkeys(range(learners))
    effects = Counter()
    for _ in range(10_000):
        kind = chance.choice(("write", "write", "ask", "ask", "learn", "learn", "kill writer", "kill learner"))
        worker, learner = chance.choice(workers), chance.randrange(learners)
        if kind == "write":
            if inserting[worker] is None:
                inserting[worker] = insert(shard, worker, sequence[worker])
                if chance.random() < 0.2:  # sent again
                    insert(shard, worker, sequence[worker])
            if not parked(inserting[worker]):
                inserting[worker] = None
                sequence[worker] += 1
        elif kind == "ask" and asking[learner] is None:
            asking[learner] = shard.lease("a", learner, chance.randint(1, 3), 0)
        elif kind == "learn":
            if asking[learner] is not None and not parked(asking[learner]):
                holding[learner] += items(asking[learner])
                asking[learner] = None
            elif holding[learner]:
                effects.update(holding[learner])  # its update and its word are one step here
                for _ in range(chance.randint(1, 2)):
                    shard.acknowledge("a", learner, holding[learner])
                holding[learner] = []
        elif kind == "kill writer" and chance.random() < 0.3:
            inserting[worker] = None  # what it sent may still be stored: the shard decides
            sequence[worker] = shard.next_sequence(worker)
        elif kind == "kill learner" and chance.random() < 0.1:
            holding[learner] = []
            if not parked(asking[learner]):
                asking[learner] = None
            shard.enlist(learner)
    assert sum(effects.values()) > 1000
    assert set(effects.values()) == {1}
    stored = {(worker, number, part) for worker, number in shard.stored for part in range(learners)}
    accepted = {(w, n, part) for w in workers for n in range(shard.accepted[w]) for part in range(learners)}
    assert set(effects) | stored == accepted  # what isn't learned is still there
    assert math.isinf(shard.capacity_bytes)
