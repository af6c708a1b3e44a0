"""Which GPUs a process sees, and which of them a learner gets."""

import pytest

from marl_hpc.comm.gpus import chosen
from marl_hpc.config import ConfigError
from marl_hpc.roles.assign import place_on_gpus

PRESENT = ["GPU-a1", "GPU-b2", "GPU-c3", "GPU-c4"]


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, PRESENT),
        ("", []),
        ("-1", []),
        ("2", ["GPU-c3"]),
        ("3,0", ["GPU-c4", "GPU-a1"]),
        (" 1 , 2 ", ["GPU-b2", "GPU-c3"]),
        ("0,7,1", ["GPU-a1"]),  # CUDA sees those before the first that isn't there
        ("GPU-b2", ["GPU-b2"]),
        ("GPU-b,GPU-a", ["GPU-b2", "GPU-a1"]),
        ("GPU-x,GPU-a", []),
        ("MIG-11,MIG-12", ["MIG-11", "MIG-12"]),
    ],
)
def test_visible_gpus_are_those_that_cuda_would_number(visible, expected):
    assert chosen(PRESENT, visible) == expected


def test_a_machine_without_gpus_shows_none_whatever_is_set():
    assert [chosen([], visible) for visible in (None, "0", "GPU-a", "MIG-1")] == [[], [], [], []]


TWO = ["learner/0", "learner/1", "rollout/0", "dataset/0"]


def test_learners_of_one_host_share_its_gpus_out():
    assert place_on_gpus(TWO, ["a"] * 4, [PRESENT] * 4) == ["cuda:0", "cuda:1", "cpu", "cpu"]


def test_learners_of_two_hosts_each_take_the_first():
    assert place_on_gpus(TWO, ["a", "b", "a", "b"], [["x"]] * 4) == ["cuda:0", "cuda:0", "cpu", "cpu"]


def test_tasks_that_see_one_gpu_each_call_it_the_first():
    assert place_on_gpus(TWO, ["a"] * 4, [["x"], ["y"], ["z"], []]) == ["cuda:0", "cuda:0", "cpu", "cpu"]


def test_tasks_that_see_overlapping_gpus_get_different_ones():
    assert place_on_gpus(TWO, ["a"] * 4, [["x", "y"], ["y", "x"], [], []]) == ["cuda:0", "cuda:0", "cpu", "cpu"]
    assert place_on_gpus(TWO, ["a"] * 4, [["x", "y"], ["x", "y"], [], []]) == ["cuda:0", "cuda:1", "cpu", "cpu"]


ASKED = ["learner/0", "rollout/0", "inference/0", "inference/1"]


@pytest.mark.parametrize(
    ("gpus", "expected"),
    [
        ([["x", "y", "z"]] * 4, ["cuda:0", "cpu", "cuda:1", "cuda:2"]),
        ([["x", "y"]] * 4, ["cuda:0", "cpu", "cuda:1", "cuda:0"]),  # as few as possible on each
        ([["x"], ["x"], ["x"], []], ["cuda:0", "cpu", "cuda:0", "cpu"]),
        ([["x"], [], ["y"], ["y", "z"]], ["cuda:0", "cpu", "cuda:0", "cuda:1"]),
        ([[], [], ["y"], []], ["cpu", "cpu", "cuda:0", "cpu"]),
    ],
)
def test_inference_roles_have_a_gpu_that_no_learner_has_or_share_one(gpus, expected):
    assert place_on_gpus(ASKED, ["a"] * 4, gpus) == expected


def test_learners_without_any_gpu_train_on_cpus():
    assert place_on_gpus(TWO, ["a"] * 4, [[], [], ["x"], []]) == ["cpu"] * 4


def test_a_world_of_one_process_has_the_first_gpu():
    assert place_on_gpus(["inline"], ["a"], [["x", "y"]]) == ["cuda:0"]


@pytest.mark.parametrize(
    ("gpus", "said"),
    [
        ([["x"], ["x"], [], []], "sees 1 GPUs, all taken by other learners"),
        ([["x"], [], [], []], "sees no GPU, but others do"),
    ],
)
def test_two_learners_on_one_gpu_are_refused(gpus, said):
    with pytest.raises(ConfigError) as caught:
        place_on_gpus(TWO, ["a"] * 4, gpus)
    assert [
        word for word in ("rank 1 (learner/1) on a", said, "roles.learner", "device=cpu") if word not in str(caught.value)
    ] == []


def test_a_first_learner_without_a_gpu_is_refused_where_another_has_one():
    with pytest.raises(ConfigError, match=r"rank 0 .* sees no GPU"):
        place_on_gpus(TWO, ["a"] * 4, [[], ["x"], [], []])
