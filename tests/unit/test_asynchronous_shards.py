"""Parameter shards of asynchronous training: under any interleaving no torn read, no lost and no doubled update."""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from marl_hpc.clocks import Clocks
from marl_hpc.metrics import Clock
from marl_hpc.roles.coordinator import Coordinator
from marl_hpc.roles.optimizing import OptimizingShard
from marl_hpc.roles.servers import ParameterServers
from tests.rigs.baton import Baton, BatonPeer, Patient

SGD = {"name": "sgd", "lr": 1.0, "eps": 1e-5, "weight_decay": 0.0, "momentum": 0.0}
ADAM = {**SGD, "name": "adam", "lr": 0.1}


def shards_of(count, learners=2, staleness=math.inf, limit_s=math.inf, budget=10**9, evaluate_every=10**9, checkpoint=None):
    coordinator = Coordinator({"a": Clocks(range(learners), staleness, limit_s)}, budget, evaluate_every)
    return [OptimizingShard(i, count, coordinator if i == 0 else None, checkpoint) for i in range(count)]


def servers_of(shards, baton, number):
    peers = [BatonPeer(baton, number, f"parameter/{i}", shard) for i, shard in enumerate(shards)]
    return ParameterServers(peers, Patient(), Clock())


def alone(shards):
    """A client that nobody interleaves with."""

    class Free(Baton):
        def pass_on(self, number):
            pass

    return servers_of(shards, Free(), 0)


def marks(values, shards, size):
    """How often each update has been applied, as each shard's slice says: [shards, size]."""
    return values.view(shards, size)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data(), st.integers(1, 3), st.sampled_from([0, 1, 3, math.inf]))
def test_every_update_is_applied_once_on_all_shards_and_every_read_is_whole(data, shard_count, staleness):
    learners, pushes = 3, 4
    size = learners * pushes
    shards = shards_of(shard_count, learners, staleness)
    baton = Baton()
    seen = []
    starts, finishes = [], {}
    moment = [0]

    def tick():
        moment[0] += 1
        return moment[0]

    def learner(number):
        servers = servers_of(shards, baton, number)
        servers.define("a", torch.zeros(shard_count * size), shard_count * size, [(0, shard_count * size, SGD)])
        version = servers.latest("a").version
        for push in range(pushes):
            starts.append((number, push, tick()))
            gradient = torch.zeros(shard_count, size)
            gradient[:, number * pushes + push] = -1
            finishes[number, push] = tick()
            answer = servers.exchange("a", number, push, gradient.flatten(), -1, (version, 0), None)
            assert not answer.dropped
            assert marks(answer.values, shard_count, size)[0, number * pushes + push] == 1  # its own is in it
            seen.append((answer.version, answer.values))
            version = answer.version
        servers.leave(number)

    def reader(number):
        servers = servers_of(shards, baton, number)
        have = {}
        for _ in range(6):
            newest = servers.newest(have)
            if newest.policies:
                assert newest.versions["a"] > have.get("a", -1)
                have = newest.versions
                seen.append((newest.versions["a"], newest.policies["a"]))

    for number in range(learners):
        baton.start(number, lambda number=number: learner(number))
    baton.start(learners, lambda: reader(learners))
    order = iter(data.draw(st.lists(st.tuples(st.integers(0, 23), st.booleans()), max_size=150)))
    turn = 0
    while baton.alive:
        turn, twice = next(order, (turn + 1, False))
        alive = sorted(baton.alive)
        baton.let(alive[turn % len(alive)], twice)
    assert not baton.errors
    final = alone(shards).latest("a")
    assert final.version == size
    assert (final.values == 1).all()  # nothing lost, nothing doubled
    by_version = {}
    for version, values in seen:
        applied = marks(values, shard_count, size)
        assert (applied == applied[0]).all()  # the same updates on every shard
        assert applied[0].sum() == version
        assert torch.equal(by_version.setdefault(version, values), values)
    # the bound: iteration c starts only after every live learner has finished iteration c - S - 1
    for number, push, at in starts:
        for other in range(learners):
            needed = push - staleness - 1
            if other != number and needed >= 0:
                assert finishes[other, int(needed)] < at


def exchange(servers, learner, sequence, gradient, **options):
    return servers.exchange(
        "a",
        learner,
        sequence,
        torch.as_tensor(gradient),
        options.get("part", -1),
        (options.get("base", 0), options.get("base", 0)),
        None,
    )


def defined(shards, size=4, spec=SGD, policies=None, parts=None):
    servers = alone(shards)
    servers.define("a", torch.zeros(size), size if policies is None else policies, parts or [(0, size, spec)])
    return servers


def test_a_learner_that_stops_between_shards_holds_nobody():
    shards = shards_of(2)
    servers = defined(shards)
    # learner 1 has its place in the order but never tells shard 1
    shards[1].stage("a", 1, 0, -torch.ones(2), -1)
    shards[0].commit("a", 1, 0, -torch.ones(2), -1, (0, 0), None)
    answer = exchange(servers, 0, 0, [-1.0, -1, -1, -1])
    assert answer.version == 2
    assert answer.values.tolist() == [2, 2, 2, 2]
    assert servers.newest({}).policies["a"].tolist() == [2, 2, 2, 2]


def test_optimizers_on_shards_are_one_on_the_whole_part_by_part():
    size, policies = 11, 7
    parts = [(0, policies, ADAM), (policies, size, {**ADAM, "lr": 0.3})]
    gradients = [torch.randn(size, generator=torch.Generator().manual_seed(i)) for i in range(6)]
    results = []
    for count in (1, 2, 3):
        servers = defined(shards_of(count), size, policies=policies, parts=parts)
        for i, gradient in enumerate(gradients):
            answer = exchange(servers, 0, i, gradient, part=(-1, 0, 1)[i % 3])
        results.append(answer.values)
        assert torch.equal(servers.newest({}).policies["a"], answer.values[:policies])
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize(("before", "after"), [(1, 1), (2, 3), (3, 1)])
def test_a_checkpoint_goes_on_bit_for_bit_with_any_number_of_shards(tmp_path, before, after):
    size = 11
    parts = [(0, 7, ADAM), (7, size, {**ADAM, "lr": 0.3})]
    gradients = [torch.randn(size, generator=torch.Generator().manual_seed(i)) for i in range(8)]
    servers = defined(shards_of(before), size, parts=parts)
    for i, gradient in enumerate(gradients[:4]):
        exchange(servers, 0, i, gradient)
    servers.learned("a", 0, 0, 123)
    held = servers.hold()
    servers.save(tmp_path, held["orders"], 10.0)
    servers.release(1)
    resumed = defined(shards_of(after, checkpoint=tmp_path), size, parts=parts)
    assert resumed.status()["env_steps"] == 123
    assert resumed.latest("a").version == 4
    for i, gradient in enumerate(gradients[4:]):
        one = exchange(servers, 0, 4 + i, gradient)
        other = exchange(resumed, 0, i, gradient)
        assert torch.equal(one.values, other.values)
        assert one.version == other.version
    assert len(list(tmp_path.iterdir())) == before
    assert "coordinator.a.moments" in load_file(tmp_path / "parameter-0.safetensors")


def test_while_a_checkpoint_is_written_updates_wait():
    shards = shards_of(1)
    servers = defined(shards)
    servers.hold()
    waiting = shards[0].commit("a", 0, 0, torch.ones(4), -1, (0, 0), None)
    counted = shards[0].learned("a", 0, 0, 5)
    assert not waiting.done()
    assert not counted.done()
    assert servers.latest("a").version == 0
    servers.release(1)
    assert waiting.value()["version"] == 1
    assert counted.value()["env_steps"] == 5
    assert counted.value()["saving"] == 1


def test_pinned_versions_never_change_and_are_noticed_when_they_do():
    shards = shards_of(2, budget=100, evaluate_every=10)
    servers = defined(shards)
    exchange(servers, 0, 0, [-1.0, -1, -1, -1])
    assert servers.learned("a", 0, 0, 25)["evaluation"] == 2
    for i in range(40):
        exchange(servers, 0, 1 + i, [-1.0, -1, -1, -1], base=servers.latest("a").version)
    found, versions = servers.pinned("evaluation/1")
    assert found["a"].tolist() == [1, 1, 1, 1]
    assert versions == {"a": 2}
    shards[1].vectors["a"].pins.read("evaluation/1")[1].add_(1)
    with pytest.raises(RuntimeError, match="has changed"):
        servers.pinned("evaluation/1")
    servers.unpin(1)
    with pytest.raises(LookupError, match="evaluation/1"):
        servers.pinned("evaluation/1")
    assert sorted(shards[0].vectors["a"].pins) == ["evaluation/2"]


def test_training_ends_where_the_budget_is_spent_and_later_gradients_change_nothing():
    servers = defined(shards_of(2, budget=20))
    exchange(servers, 0, 0, [-1.0, -1, -1, -1])
    assert not servers.learned("a", 0, 0, 19)["final"]
    assert servers.learned("a", 1, 0, 1)["final"]
    late = exchange(servers, 0, 1, [-1.0, -1, -1, -1])
    assert late.status["final"]
    assert late.values.tolist() == [1, 1, 1, 1]
    assert servers.pinned("final")[0]["a"].tolist() == [1, 1, 1, 1]


def test_batches_are_counted_once():
    servers = defined(shards_of(1))
    for _ in range(3):
        status = servers.learned("a", 0, 0, 7)
    assert status["env_steps"] == 7
    assert servers.learned("a", 1, 0, 7)["env_steps"] == 14
    assert servers.counts()["a"]["learned"] == 2


def test_a_gradient_beyond_the_limit_is_dropped_and_its_learner_goes_on_with_the_newest():
    shards = shards_of(1, staleness=1, limit_s=0.05)
    servers = defined(shards)
    course = shards[0].coordinator.courses["a"]
    course.clocks.start(1, -100.0)
    for i in range(5):
        assert not exchange(servers, 0, i, [-1.0, -1, -1, -1], base=i).dropped
    answer = exchange(servers, 1, 0, [-100.0] * 4)
    assert answer.dropped
    assert answer.values.tolist() == [5, 5, 5, 5]
    assert servers.counts()["a"]["dropped"] == {0: 0, 1: 1}
    assert course.clocks.finished[1] == 5


def test_who_waits_for_a_late_learner_is_freed_by_time():
    shards = shards_of(1, staleness=0, limit_s=0.2)
    defined(shards)
    shards[0].coordinator.courses["a"].clocks.start(1, __import__("time").monotonic())
    waiting = shards[0].commit("a", 0, 0, torch.ones(4), -1, (0, 0), None)
    assert not waiting.done()
    assert waiting.wait()["version"] == 1
    shards[0].close()


def test_delays_are_counted_in_versions():
    servers = defined(shards_of(1))
    exchange(servers, 0, 0, [0.0] * 4, base=0)
    exchange(servers, 1, 0, [0.0] * 4, base=0)
    exchange(servers, 1, 1, [0.0] * 4, base=2)
    assert servers.counts()["a"]["delays"] == [0, 1, 0]
    assert servers.counts()["a"]["delays"] == []


def test_value_statistics_are_those_of_all_learners_batches():
    from marl_hpc.returns import ValueNormalizer

    shards = shards_of(1)
    servers = defined(shards)
    batches = [torch.randn(50, dtype=torch.float64) * 3 + 7, torch.randn(50, dtype=torch.float64)]
    expected = ValueNormalizer()
    for learner, batch in enumerate(batches):
        moments = torch.tensor([len(batch), batch.mean(), ((batch - batch.mean()) ** 2).sum()], dtype=torch.float64)
        answer = servers.exchange("a", learner, 0, torch.zeros(4), -1, (0, 0), moments)
        expected.update(torch.tensor([len(batch), batch.sum(), (batch**2).sum()], dtype=torch.float64))
    torch.testing.assert_close(answer.moments, expected.moments)


def test_a_reader_of_nothing_newer_gets_one_tiny_reply():
    shards = shards_of(3)
    servers = defined(shards)
    newest = servers.newest({})
    asked = []
    for peer in servers.peers:
        call = peer.call
        peer.call = lambda method, *arguments, call=call, name=peer.name: (asked.append(name), call(method, *arguments))[1]
    again = servers.newest(newest.versions)
    assert again.policies == {}
    assert asked == ["parameter/0"]


def test_readers_of_a_version_that_is_gone_get_a_newer_whole_one():
    shards = shards_of(2)
    servers = defined(shards)
    stale = servers._wait(servers.peers[0].call("latest", "a"), "shards")
    for i in range(60):
        exchange(servers, 0, i, [-1.0, -1, -1, -1], base=i)
    version, _, values = servers.whole("a", stale)[:3]
    assert version == 60
    assert values.tolist() == [60] * 4
