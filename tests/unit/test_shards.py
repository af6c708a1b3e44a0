"""Parameter and dataset shards, called directly: what is parked, what is settled, and that nothing is lost or doubled."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rigs.baton import Patient
from safetensors.torch import load_file
from torch.futures import Future

from marl_hpc.comm.peers import LocalPeer
from marl_hpc.metrics import Clock
from marl_hpc.roles.clients import ParameterClient
from marl_hpc.roles.dataset import DatasetShard
from marl_hpc.roles.parameter import KEPT, ParameterShard, slices
from marl_hpc.storage.checkpoint import checksum

COPIES = 5


def rows_of(worker, sequence, copies=COPIES):
    """{interface: rows [1, copies, 1] and a memory [2, copies, 1, 1]} that say who collected them: worker, sequence and copy."""
    numbers = (worker * 10_000 + sequence * 100 + torch.arange(copies)).reshape(1, copies, 1)
    memory = numbers.unsqueeze(-1).expand(2, copies, 1, 1)
    return {"a": {"rows": numbers, "a/memory": memory}, "b": {"rows": -numbers}}


def episodes_of(worker, sequence):
    return torch.tensor([[float(worker), float(sequence)]])


def insert(shard, worker, sequence, version=0):
    return shard.insert(worker, sequence, rows_of(worker, sequence), episodes_of(worker, sequence), version)


def parked(answer):
    return isinstance(answer, Future) and not answer.done()


def value(answer):
    assert not parked(answer)
    return answer.value() if isinstance(answer, Future) else answer


def shard_of(workers=(0,), consumers=1, capacity=2, start=0):
    return DatasetShard(0, workers, consumers, capacity, start)


# dataset shard


def test_fragments_ahead_wait_for_room_in_bytes_and_those_that_are_due_never_do():
    size_bytes = sum(x.nbytes for tensors in rows_of(0, 0).values() for x in tensors.values())
    shard = DatasetShard(0, (0, 1), 1, 2, 0, capacity_bytes=2.5 * size_bytes)
    assert insert(shard, 0, 0) is True
    assert insert(shard, 0, 1) is True
    assert insert(shard, 1, 0) is True  # due, though there is no room
    waiting = insert(shard, 1, 1)
    assert parked(waiting)
    shard.acknowledge(0, "a", 0)
    assert value(waiting) is True
    small = DatasetShard(0, (0, 1), 1, 2, 0, capacity_bytes=1.5 * size_bytes)
    with pytest.raises(ValueError, match=r"dataset\.queue_bytes"):
        insert(small, 0, 0)


def test_sample_waits_until_every_worker_has_delivered():
    shard = shard_of(workers=(0, 2))
    answer = shard.sample(0, "a", 0, 1)
    assert parked(answer)
    assert insert(shard, 0, 0) is True
    assert parked(answer)
    insert(shard, 2, 0, version=7)
    sampled = value(answer)
    assert sorted(sampled) == [0, 2]
    for worker, version in ((0, 0), (2, 7)):
        parts, first, episodes, collected_with = sampled[worker]
        assert sorted(parts) == ["a/memory", "rows"]
        for name, expected in rows_of(worker, 0)["a"].items():
            assert torch.equal(parts[name], expected)
        assert torch.equal(episodes, episodes_of(worker, 0))
        assert (first, collected_with) == (0, version)


def test_sample_of_what_is_there_is_answered_at_once():
    shard = shard_of()
    insert(shard, 0, 0)
    assert torch.equal(shard.sample(0, "b", 0, 1)[0][0]["rows"], rows_of(0, 0)["b"]["rows"])


def test_sampled_fragments_stay_until_acknowledged():
    shard = shard_of()
    insert(shard, 0, 0)
    assert torch.equal(shard.sample(0, "a", 0, 1)[0][0]["rows"], shard.sample(0, "a", 0, 1)[0][0]["rows"])
    shard.acknowledge(0, "a", 0)
    assert shard.fragments == {}


def test_writer_ahead_waits_for_room_and_acknowledging_gives_it():
    shard = shard_of(capacity=2)
    assert insert(shard, 0, 0) is True
    assert insert(shard, 0, 1) is True
    waiting = insert(shard, 0, 2)
    assert parked(waiting)
    assert len(shard.fragments) == 2
    shard.acknowledge(0, "a", 0)
    assert value(waiting) is True
    assert sorted(shard.fragments) == [(0, 1), (0, 2)]
    assert parked(insert(shard, 0, 3))


def test_room_needs_every_consumers_word():
    shard = shard_of(consumers=3, capacity=1)
    insert(shard, 0, 0)
    waiting = insert(shard, 0, 1)
    for group, part in (("a", 0), ("a", 1), ("a", 1)):  # one of them says it twice
        shard.acknowledge(0, group, part)
        assert parked(waiting)
    shard.acknowledge(0, "b", 0)
    assert value(waiting) is True


def test_room_for_one_worker_is_none_of_anothers():
    shard = shard_of(workers=(0, 1), capacity=1)
    insert(shard, 0, 0)
    assert parked(insert(shard, 0, 1))
    assert insert(shard, 1, 0) is True


def test_repeated_insert_is_stored_once():
    shard = shard_of()
    insert(shard, 0, 0)
    changed = {name: {"rows": parts["rows"] + 1} for name, parts in rows_of(0, 0).items()}
    assert shard.insert(0, 0, changed, episodes_of(9, 9), 5) is True
    assert torch.equal(shard.sample(0, "a", 0, 1)[0][0]["rows"], rows_of(0, 0)["a"]["rows"])
    assert shard.next_sequence(0) == 1
    shard.acknowledge(0, "a", 0)
    assert insert(shard, 0, 0) is True  # late as it is, it isn't stored again
    assert shard.fragments == {}


def test_insert_repeated_while_it_waits_for_room_is_stored_once():
    shard = shard_of(capacity=1)
    insert(shard, 0, 0)
    first, second = insert(shard, 0, 1), insert(shard, 0, 1)
    shard.acknowledge(0, "a", 0)
    assert value(first) is value(second) is True
    assert sorted(shard.fragments) == [(0, 1)]
    assert shard.next_sequence(0) == 2


def test_skipped_fragment_is_an_error_that_names_what_is_expected():
    shard = shard_of(workers=(3,), start=4)
    insert(shard, 3, 4)
    with pytest.raises(ValueError, match=r"rollout/3 sent fragment 6; dataset/0 expects 5"):
        insert(shard, 3, 6)
    assert shard.next_sequence(3) == 5


def test_shard_of_a_resumed_run_begins_at_its_start():
    shard = shard_of(start=10, capacity=1)
    assert shard.next_sequence(0) == 10
    assert insert(shard, 0, 9) is True
    assert shard.fragments == {}
    insert(shard, 0, 10)
    assert parked(insert(shard, 0, 11))


@given(st.integers(0, 9), st.integers(1, 6))
def test_parts_of_a_sample_are_together_its_columns(copies, parts):
    shard = shard_of()
    shard.insert(0, 0, rows_of(0, 0, copies), episodes_of(0, 0), 0)
    pieces = [shard.sample(0, "a", part, parts)[0] for part in range(parts)]
    for name, whole in rows_of(0, 0, copies)["a"].items():
        assert torch.equal(torch.cat([own[name] for own, *_ in pieces], 1), whole)
    sizes = [own["rows"].shape[1] for own, *_ in pieces]
    assert [first for _, first, *_ in pieces] == [sum(sizes[:part]) for part in range(parts)]
    assert max(sizes) - min(sizes) <= 1


def test_evaluation_waits_for_every_worker_or_answers_that_some_are_missing():
    shard = shard_of(workers=(1, 3))
    waiting = shard.evaluation(8, wait=True)
    parts = {1: torch.tensor([[1.0, 25.0, 8.0]]), 3: torch.tensor([[2.0, 25.0, 8.0], [3.0, 25.0, 8.0]])}
    shard.insert_evaluation(8, 3, parts[3])
    shard.insert_evaluation(4, 1, parts[1])
    assert parked(waiting)
    assert shard.evaluation(8, wait=False) == {}
    shard.insert_evaluation(8, 1, parts[1])
    expected = torch.cat([parts[1], parts[3]])
    assert torch.equal(value(waiting)["episodes"], expected)
    assert torch.equal(shard.evaluation(8, wait=False)["episodes"], expected)


def test_evaluation_given_twice_by_a_replaced_worker_counts_once():
    shard = shard_of()
    for _ in range(2):
        shard.insert_evaluation(8, 0, torch.ones(3, 3))
    assert len(shard.evaluation(8, wait=True)["episodes"]) == 3


def test_closing_tells_all_who_wait_and_all_who_would_wait():
    shard = shard_of(capacity=1)
    insert(shard, 0, 0)
    waiting = [insert(shard, 0, 1), shard.sample(1, "a", 0, 1), shard.evaluation(3, wait=True)]
    assert all(parked(answer) for answer in waiting)
    shard.close()
    assert [value(answer) for answer in waiting] == [{"stopping": True}] * 3
    assert shard.sample(1, "a", 0, 1) == {"stopping": True}
    assert torch.equal(shard.sample(0, "a", 0, 1)[0][0]["rows"], rows_of(0, 0)["a"]["rows"])  # what is there is still given


def test_description_says_who_delivered_what():
    shard = shard_of(workers=(0, 2))
    assert "no insert yet" in shard.describe()
    insert(shard, 2, 0)
    text = shard.describe()
    assert "rollout/0 delivered 0, rollout/2 delivered 1" in text
    assert "1 fragments stored" in text
    assert "by rollout/2" in text


def test_sample_parked_before_the_insert_that_gets_room_is_answered():
    """Consumer 0 is early: it waits for a fragment whose own writer waits for consumer 1."""
    shard = shard_of(consumers=2, capacity=1)
    insert(shard, 0, 0)
    shard.acknowledge(0, "a", 0)
    sampled = shard.sample(1, "a", 0, 1)
    written = insert(shard, 0, 1)
    assert parked(sampled)
    assert parked(written)
    shard.acknowledge(0, "b", 0)
    assert value(written) is True
    assert torch.equal(value(sampled)[0][0]["rows"], rows_of(0, 1)["a"]["rows"])


class Writer:
    """A rollout worker that may die and be replaced, and may send again what was lost on the way."""

    def __init__(self, shard, worker):
        self.shard, self.worker, self.answer = shard, worker, None
        self.sequence = shard.next_sequence(worker)

    def act(self, repeat, die):
        if die:
            self.answer, self.sequence = None, self.shard.next_sequence(self.worker)
        if self.answer is not None and not parked(self.answer):
            assert value(self.answer) is True
            self.answer, self.sequence = None, self.sequence + 1
        if self.answer is None:
            self.answer = insert(self.shard, self.worker, self.sequence)
        elif repeat:
            insert(self.shard, self.worker, self.sequence)


class Reader:
    """One interface replica: sample, note what came, acknowledge, maybe twice."""

    def __init__(self, shard, group, part, parts):
        self.shard, self.place, self.parts = shard, (group, part), parts
        self.iteration, self.answer, self.seen = 0, None, []

    def act(self, repeat, _):
        group, part = self.place
        if self.answer is None:
            self.answer = self.shard.sample(self.iteration, group, part, self.parts)
            return
        if parked(self.answer):
            return
        sign = 1 if group == "a" else -1
        for worker, (own, first, episodes, _) in value(self.answer).items():
            assert episodes[0].tolist() == [worker, self.iteration]
            self.seen += [(self.iteration, worker, first + i, sign * int(x)) for i, x in enumerate(own["rows"].flatten())]
        for _ in range(2 if repeat else 1):
            self.shard.acknowledge(self.iteration, group, part)
        self.answer, self.iteration = None, self.iteration + 1


@settings(max_examples=150, deadline=None)
@given(
    workers=st.integers(1, 3), capacity=st.integers(1, 2), parts=st.integers(1, 2),
    moves=st.lists(st.tuples(st.integers(0, 6), st.booleans(), st.booleans()), max_size=120),
)  # fmt: skip
def test_no_fragment_is_lost_or_doubled_in_any_order_of_calls(workers, capacity, parts, moves):
    consumers = [("a", part) for part in range(parts)] + [("b", 0)]
    shard = shard_of(tuple(range(workers)), len(consumers), capacity)
    readers = [Reader(shard, group, part, parts if group == "a" else 1) for group, part in consumers]
    actors = [Writer(shard, worker) for worker in range(workers)] + readers
    for who, repeat, die in moves:
        actors[who % len(actors)].act(repeat, die)
        assert len(shard.fragments) <= workers * capacity
    goal = max(reader.iteration for reader in readers) + 2
    for _ in range(20 * goal):  # everybody goes on; nobody may be stuck
        for actor in actors:
            if not isinstance(actor, Reader) or actor.iteration < goal:
                actor.act(False, False)
    assert [reader.iteration for reader in readers] == [goal] * len(readers)
    for group in ("a", "b"):
        seen = sorted(entry for reader in readers if reader.place[0] == group for entry in reader.seen)
        assert seen == [
            (iteration, worker, copy, worker * 10_000 + iteration * 100 + copy)
            for iteration in range(goal) for worker in range(workers) for copy in range(COPIES)
        ]  # fmt: skip


# parameter shard


def test_pull_waits_for_its_version_of_every_policy():
    shard = ParameterShard(0, ("a", "b"))
    answer = shard.pull(0)
    shard.publish("a", 0, torch.zeros(2))
    assert parked(answer)
    shard.publish("b", 0, torch.ones(3))
    assert {name: x["full"].tolist() for name, x in value(answer)["values"].items()} == {"a": [0, 0], "b": [1, 1, 1]}


def test_pull_gives_exactly_the_version_asked_for():
    shard = ParameterShard(0, ("a",))
    for version in range(3):
        shard.publish("a", version, torch.full((2,), float(version)))
    for version in range(3):
        assert shard.pull(version)["values"]["a"]["full"].tolist() == [version, version]
    assert parked(shard.pull(3))


def test_last_versions_are_kept_and_older_ones_are_refused():
    shard = ParameterShard(1, ("a",))
    for version in range(KEPT + 2):
        shard.publish("a", version, torch.full((2,), float(version)))
    assert sorted(shard.versions) == list(range(2, KEPT + 2))
    with pytest.raises(LookupError, match=rf"parameter/1 keeps {KEPT} versions, the newest {KEPT + 1}; version 1 is gone"):
        shard.pull(1)


def test_waiting_reader_is_told_when_its_version_is_gone():
    shard = ParameterShard(0, ("a",))
    shard.publish("a", 5, torch.zeros(1))
    answer = shard.pull(6)
    shard.publish("a", 7, torch.zeros(1))
    assert not parked(answer)
    with pytest.raises(Exception, match="version 6 is gone"):
        answer.wait()


def test_version_published_again_keeps_its_first_values():
    shard = ParameterShard(0, ("a",))
    shard.publish("a", 0, torch.zeros(2))
    shard.publish("a", 0, torch.ones(2))
    assert shard.pull(0)["values"]["a"]["full"].tolist() == [0, 0]


def test_finishing_answers_those_who_wait_for_later_versions():
    shard = ParameterShard(0, ("a",))
    shard.publish("a", 3, torch.zeros(1))
    waiting = shard.pull(4)
    shard.finish(3)
    assert value(waiting) == {"final": 3}
    assert shard.pull(9) == {"final": 3}
    assert shard.pull(3)["values"]["a"]["full"].tolist() == [0]


def test_closed_parameter_shard_says_that_it_stops():
    shard = ParameterShard(0, ("a",))
    waiting = shard.pull(0)
    shard.close()
    assert value(waiting) == {"stopping": True}
    assert shard.pull(1) == {"stopping": True}


def test_saved_shard_holds_the_version_and_its_checksum(tmp_path):
    shard = ParameterShard(2, ("a", "b"))
    for version in range(2):
        whole = torch.arange(6.0) + 10 * version
        shard.publish("a", version, whole[2:4])
        shard.publish("b", version, whole[4:])
    name, digest = shard.save(str(tmp_path), 0)
    assert name == "parameter-2.safetensors"
    assert digest == checksum(tmp_path / name)
    assert {key: x.tolist() for key, x in load_file(tmp_path / name).items()} == {"policy.a": [2, 3], "policy.b": [4, 5]}


def pinning(shards):
    peers = [LocalPeer(f"parameter/{i}", shard) for i, shard in enumerate(shards)]
    return ParameterClient(peers, Patient(), Clock())


def test_pinned_version_outlives_the_versions_and_never_changes():
    shards = [ParameterShard(i, ("a",)) for i in range(2)]
    client = pinning(shards)
    client.publish("a", 0, torch.arange(5.0))
    client.pin("first", "a", 0)
    client.pin("first", "a", 0)  # a repetition
    for version in range(1, KEPT + 2):
        client.publish("a", version, torch.full((5,), float(version)))
    version, values = client.pinned("first")
    assert (version, values.tolist()) == (0, [0, 1, 2, 3, 4])
    with pytest.raises(ValueError, match="'first' is pinned as version 0 already"):
        client.pin("first", "a", KEPT + 1)
    with pytest.raises(LookupError, match="version 0 of 'a' can't be pinned: parameter/0 keeps versions 2, 3, 4, 5"):
        client.pin("again", "a", 0)
    shards[1].pins.read("first")[1].add_(1)
    with pytest.raises(RuntimeError, match="pinned version 'first' has changed"):
        client.pinned("first")
    client.unpin("first")
    with pytest.raises(LookupError, match="nothing is pinned as 'first'; pins: none"):
        client.pinned("first")


@pytest.mark.parametrize("after", [1, 2, 5])
def test_pins_go_on_from_a_checkpoint_over_another_number_of_shards(tmp_path, after):
    client = pinning([ParameterShard(i, ("a", "b")) for i in range(2)])
    for policy, values in {"a": torch.arange(5.0), "b": torch.arange(3.0)}.items():
        client.publish(policy, 7, values)
        client.pin(f"old {policy}", policy, 7)
    client.save(tmp_path, 7, 10.0)
    again = pinning([ParameterShard(i, ("a", "b"), shards=after, checkpoint=tmp_path) for i in range(after)])
    assert [again.pinned("old a")[0], again.pinned("old a")[1].tolist()] == [7, [0, 1, 2, 3, 4]]
    assert again.pinned("old b")[1].tolist() == [0, 1, 2]


@given(st.integers(0, 200), st.integers(1, 12))
def test_slices_cut_a_buffer_whole_in_order_and_evenly(size, shards):
    whole = torch.arange(size)
    cuts = [whole[cut] for cut in slices(size, shards)]
    assert len(cuts) == shards
    assert torch.equal(torch.cat(cuts), whole)
    assert max(map(len, cuts)) - min(map(len, cuts)) <= 1


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["publish a", "publish b", "pull"]), st.booleans()), max_size=60))
def test_readers_never_see_half_of_two_versions(moves):
    """Learners publish in any interleaving, a reader pulls version after version; what it gets is of one version each time."""
    shard, next_version, wanted, answer, got = ParameterShard(0, ("a", "b")), {"a": 0, "b": 0}, 0, None, []
    for move, again in moves:
        if move == "pull":
            if answer is None:
                answer = shard.pull(wanted)
            if not parked(answer):
                got.append({name: int(x["full"]) for name, x in value(answer)["values"].items()})
                answer, wanted = None, wanted + 1
            continue
        policy = move[-1]
        # a learner is at most one version ahead of the other, and of the reader
        if next_version[policy] > min(next_version.values()) or next_version[policy] > wanted + 1:
            continue
        for _ in range(2 if again else 1):
            shard.publish(policy, next_version[policy], torch.tensor(next_version[policy]))
        next_version[policy] += 1
    assert got == [{"a": version, "b": version} for version in range(len(got))]
