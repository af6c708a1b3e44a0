"""Ranks to roles: counts, places, and worlds that can't be."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marl_hpc.config import ConfigError, Roles
from marl_hpc.roles.assign import KINDS, Role, assign, count_roles, nearest, table


def counts_of(learner, rollout, parameter, dataset, inference=0):
    return {"learner": learner, "rollout": rollout, "parameter": parameter, "dataset": dataset, "inference": inference}


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (4, (1, 1, 1, 1)), (5, (1, 2, 1, 1)), (8, (1, 5, 1, 1)), (15, (1, 12, 1, 1)), (16, (2, 12, 1, 1)), (24, (3, 19, 1, 1)),
        (32, (4, 24, 2, 2)), (64, (8, 48, 4, 4)),
    ],
)  # fmt: skip
def test_unset_roles_share_the_world(size, expected):
    assert count_roles(Roles(), size) == counts_of(*expected)


def test_without_a_launcher_every_role_gets_what_is_asked_or_one():
    assert count_roles(Roles(), None) == counts_of(1, 1, 1, 1)
    assert count_roles(Roles(rollout=7, dataset=2), None) == counts_of(1, 7, 1, 2)


def test_rollout_workers_take_what_the_others_leave():
    assert count_roles(Roles(learner=3, parameter=2), 10) == counts_of(3, 4, 2, 1)
    assert count_roles(Roles(rollout=4, learner=2), 8) == counts_of(2, 4, 1, 1)
    assert count_roles(Roles(inference=2), 10) == counts_of(1, 5, 1, 1, 2)


def test_inference_roles_are_there_only_where_they_are_asked_for():
    assert count_roles(Roles(inference=1), None) == counts_of(1, 1, 1, 1, 1)
    assert count_roles(Roles(), 300)["inference"] == 0


@given(st.integers(4, 300))
def test_counts_fill_every_world_of_four_ranks_or_more(size):
    counts = count_roles(Roles(), size)
    assert sum(counts.values()) == size
    assert min(count for kind, count in counts.items() if kind != "inference") >= 1
    assert counts["rollout"] == max(counts.values())


@pytest.mark.parametrize(
    ("roles", "size", "words"),
    [
        (Roles(), 3, ["4 ranks", "started 3", "start at least 4 ranks", "world=inline"]),
        (Roles(), 1, ["started 1", "start at least 4 ranks"]),
        (Roles(rollout=4), 6, ["7 ranks (1 learner + 4 rollout + 1 parameter + 1 dataset)", "started 6", "set roles.rollout=3"]),
        (Roles(rollout=2), 8, ["started 8", "set roles.rollout=5"]),
        (Roles(learner=5), 6, ["started 6", "start at least 8 ranks"]),
        (
            Roles(rollout=2, inference=1),
            5,
            ["6 ranks (1 learner + 2 rollout + 1 parameter + 1 dataset + 1 inference)", "set roles.rollout=1"],
        ),
        (Roles(inference=1), 4, ["5 ranks", "started 4", "start at least 5 ranks"]),
        (
            Roles(rollout=1, inference=2),
            None,
            ["roles.inference=2", "only 1 rollout workers ask them", "no higher than roles.rollout"],
        ),
        (Roles(inference=3), 8, ["roles.inference=3", "only 2 rollout workers"]),
    ],
)
def test_impossible_world_says_what_would_fit(roles, size, words):
    with pytest.raises(ConfigError) as caught:
        count_roles(roles, size)
    assert [word for word in words if word not in str(caught.value)] == []


def names(roles):
    return [str(role) for role in roles]


def test_one_host_keeps_workers_next_to_learners_and_shards_last():
    assert names(assign(counts_of(2, 3, 1, 2), ["a"] * 8)) == [
        "learner/0", "learner/1", "rollout/0", "rollout/1", "rollout/2", "parameter/0", "dataset/0", "dataset/1",
    ]  # fmt: skip


def test_shards_of_a_kind_are_spread_over_hosts_beginning_with_the_learners():
    hosts = ["b"] * 4 + ["a"] * 4
    roles = assign(counts_of(1, 3, 2, 2), hosts)
    for kind in ("dataset", "parameter"):
        assert [hosts[roles.index(Role(kind, i))] for i in range(2)] == ["b", "a"]
    assert names(roles) == [
        "learner/0", "rollout/0", "parameter/0", "dataset/0", "rollout/1", "rollout/2", "parameter/1", "dataset/1",
    ]  # fmt: skip


def test_more_shards_than_hosts_go_around():
    hosts = ["a"] * 5 + ["b"] * 5
    roles = assign(counts_of(1, 5, 1, 3), hosts)
    placed = [host for role, host in zip(roles, hosts, strict=True) if role.kind == "dataset"]
    assert sorted(placed) == ["a", "a", "b"]


def test_full_host_passes_its_shard_on():
    hosts = ["a", "b", "b", "b"]
    assert names(assign(counts_of(1, 1, 1, 1), hosts)) == ["learner/0", "rollout/0", "parameter/0", "dataset/0"]


def test_further_learners_take_ranks_with_a_gpu():
    hosts = ["a"] * 4 + ["b"] * 4
    roles = assign(counts_of(3, 3, 1, 1), hosts, gpus=[0, 0, 0, 1, 0, 0, 2, 0])
    assert [rank for rank, role in enumerate(roles) if role.kind == "learner"] == [0, 3, 6]
    assert [str(roles[rank]) for rank in (0, 3, 6)] == ["learner/0", "learner/1", "learner/2"]


def test_inference_roles_take_the_gpus_that_learners_leave():
    hosts = ["a"] * 4 + ["b"] * 4
    roles = assign(counts_of(2, 3, 1, 1, 1), hosts, gpus=[1, 0, 1, 0, 0, 1, 0, 0])
    assert [str(roles[rank]) for rank in (0, 2, 5)] == ["learner/0", "learner/1", "inference/0"]


def test_inference_roles_are_spread_over_hosts():
    hosts = ["b"] * 4 + ["a"] * 4
    roles = assign(counts_of(1, 3, 1, 1, 2), hosts)
    assert [hosts[roles.index(Role("inference", i))] for i in range(2)] == ["b", "a"]
    assert names(assign(counts_of(1, 2, 1, 1, 1), ["a"] * 6)) == [
        "learner/0", "rollout/0", "rollout/1", "parameter/0", "dataset/0", "inference/0",
    ]  # fmt: skip


@st.composite
def worlds(draw):
    counts = counts_of(*(draw(st.integers(1, 5)) for _ in range(4)), draw(st.integers(0, 3)))
    size = sum(counts.values())
    hosts = draw(st.lists(st.sampled_from("abc"), min_size=size, max_size=size))
    gpus = draw(st.lists(st.integers(0, 2), min_size=size, max_size=size))
    return counts, hosts, gpus


@given(worlds())
def test_every_role_is_given_once_and_rank_zero_leads(world):
    counts, hosts, gpus = world
    roles = assign(counts, hosts, gpus)
    assert len(roles) == len(hosts)
    assert set(roles) == {Role(kind, i) for kind in KINDS for i in range(counts[kind])}
    assert roles[0] == Role("learner", 0)
    for kind in KINDS[1:]:  # in rank order, so that neighbors in number are neighbors in rank
        assert [role.index for role in roles if role.kind == kind] == list(range(counts[kind]))
    with_gpu = sum(gpu > 0 for gpu in gpus[1:])
    taken = sum(role.kind == "learner" and gpu > 0 for role, gpu in zip(roles[1:], gpus[1:], strict=True))
    assert taken == min(counts["learner"] - 1, with_gpu)
    asked = sum(role.kind == "inference" and gpu > 0 for role, gpu in zip(roles, gpus, strict=True))
    assert asked == min(counts["inference"], with_gpu - taken)
    assert assign(counts, hosts, gpus) == roles


def test_table_shows_rank_role_and_host():
    text = table(assign(counts_of(1, 1, 1, 1), ["n1", "n1", "n2", "n2"]), ["n1", "n1", "n2", "n2"])
    lines = [line.split() for line in text.splitlines()]
    assert lines[0] == ["rank", "role", "host"]
    assert lines[1] == ["0", "learner/0", "n1"]
    assert len(lines) == 5


@pytest.mark.parametrize(("roles", "size"), [(Roles(rollout=1, dataset=2), None), (Roles(learner=28, rollout=1, dataset=2), 33)])
def test_more_dataset_shards_than_workers_is_refused(roles, size):
    with pytest.raises(ConfigError, match=r"roles.dataset=2 but only 1 rollout workers"):
        count_roles(roles, size)


def test_unset_dataset_shards_never_outnumber_the_workers():
    assert count_roles(Roles(rollout=1, learner=29, parameter=1), 32) == counts_of(29, 1, 1, 1)


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=9), st.data())
def test_every_dataset_shard_has_workers_and_those_of_its_own_host_first(workers, data):
    shards = data.draw(st.lists(st.sampled_from("abc"), min_size=1, max_size=len(workers)))
    chosen = nearest(workers, shards)
    loads = [chosen.count(shard) for shard in range(len(shards))]
    share = -(-len(workers) // len(shards))
    assert min(loads) >= 1
    assert max(loads) <= share
    if len(workers) % len(shards) == 0 and sorted(shards * share) == sorted(workers):
        assert all(workers[w] == shards[s] for w, s in enumerate(chosen))  # nobody writes across hosts where nobody has to
