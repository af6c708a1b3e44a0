"""An inference role, called directly: what it gathers into one forward pass, whom it keeps waiting, and that it says what policies say."""

import time

import numpy as np
import pytest
import torch
from rigs import inline
from safetensors.torch import load_file
from torch.futures import Future

from marl_hpc.actors import build_policy
from marl_hpc.clocks import Clocks
from marl_hpc.comm.peers import LocalPeer
from marl_hpc.config import Inference
from marl_hpc.metrics import Clock
from marl_hpc.networks import load_flat
from marl_hpc.roles import inference
from marl_hpc.roles.acting import OwnPolicies, ask
from marl_hpc.roles.clients import InferenceClient, ParameterClient, Stopping
from marl_hpc.roles.coordinator import Coordinator
from marl_hpc.roles.following import FollowingServer, split
from marl_hpc.roles.inference import ScheduledServer
from marl_hpc.roles.optimizing import OptimizingShard
from marl_hpc.roles.parameter import ParameterShard
from marl_hpc.roles.servers import ParameterServers
from marl_hpc.types import ActionSpace, GroupSpec, Seen

COPIES, LONG = 4, 60_000.0
NETWORK = {"hidden": [8], "activation": "tanh", "agent_id": True, "gru": 3}
GROUPS = {
    "a": GroupSpec(name="a", agents=("a_0", "a_1"), observation_shape=(5,), action_space=ActionSpace(kind="discrete", n=3)),
    "b": GroupSpec(name="b", agents=("b_0",), observation_shape=(2, 2), action_space=ActionSpace(kind="box", shape=(2,))),
}
OBSERVATIONS = COPIES * 3  # of one worker's call


class Someone:
    """A world that waits for nobody."""

    rank, patience_s, stopping = 0, 5.0, False

    def stamp(self, allow_s=None):
        pass


def policies_of(version=0):
    """Both groups' policies, with numbers of this version."""
    policies = {name: build_policy([group], NETWORK, version).double() for name, group in GROUPS.items()}
    for policy in policies.values():
        policy.epsilon = 0.0
    return policies


def flat(policy):
    return torch.cat([p.detach().flatten() for p in policy.parameters()])


class Rig:
    """A server with two parameter shards, and the numbers of its forward passes' copies."""

    def __init__(self, monkeypatch, workers, *, alone=False, **options):
        self.shards = [ParameterShard(i, tuple(GROUPS)) for i in range(2)]
        self.parameters = ParameterClient([LocalPeer(f"parameter/{i}", s) for i, s in enumerate(self.shards)], Someone(), Clock())
        config = Inference(**{"max_wait_ms": LONG, **options})
        self.server = ScheduledServer(0, policies_of(99), self.parameters, workers, config, Clock(), alone=alone)
        self.passes = []
        plain = inference.answer

        def counting(policy, question):
            self.passes.append((policy.groups[0].name, len(question.memory)))
            return plain(policy, question)

        monkeypatch.setattr(inference, "answer", counting)

    def publish(self, version):
        for name, policy in policies_of(version).items():
            self.parameters.publish(name, version, flat(policy))

    def turn(self, worker, version):
        answer = self.server.turn_to(worker, version)
        self.server.step()
        return answer

    def act(self, worker, version, questions):
        return self.server.act(worker, version, {name: tuple(question) for name, question in questions.items()})


@pytest.fixture
def rig(monkeypatch):
    return lambda workers, **options: Rig(monkeypatch, workers, **options)


def questions_of(seed, epsilon=0.1, greedy=False, copies=COPIES):
    random = np.random.default_rng(seed)
    seen = Seen(
        {name: random.normal(size=(copies, len(g.agents), *g.observation_shape)).astype(np.float32) for name, g in GROUPS.items()},
        {"a": random.random((copies, 2, 3)) < 0.7},
        {name: random.random((copies, len(g.agents))) < 0.8 for name, g in GROUPS.items()},
    )
    seen.action_mask["a"][..., 0] = True
    found = {}
    for name, policy in policies_of().items():
        group = GROUPS[name]
        noise = {name: torch.from_numpy(random.uniform(0.1, 0.9, (copies, len(group.agents), group.action_space.size)))}
        memory = torch.from_numpy(random.normal(size=(copies, *policy.memory_shape)))
        found[name] = ask(policy, seen, memory, None if greedy else noise, epsilon)
    return found


def parked(answer):
    return isinstance(answer, Future) and not answer.done()


def value(answer):
    assert not parked(answer)
    return answer.value() if isinstance(answer, Future) else answer


def check(answer, version, questions):
    """The server says what that version's policies say."""
    for name, expected in OwnPolicies(policies_of(version)).act(questions).items():
        actions, log_probs, memory = value(answer)[name]
        torch.testing.assert_close(actions, expected.actions)
        torch.testing.assert_close(log_probs, expected.log_probs)
        torch.testing.assert_close(memory, expected.memory)


def test_workers_of_one_version_share_one_forward_pass_of_each_policy(rig):
    rig = rig(3)
    rig.publish(7)
    asked = {worker: questions_of(worker, copies=COPIES + worker) for worker in range(3)}
    assert [value(rig.turn(worker, 7)) for worker in asked] == [{"version": 7}] * 3
    answers = {}
    for worker, questions in asked.items():
        answers[worker] = rig.act(worker, 7, questions)
        assert parked(answers[worker])
        if worker < 2:
            rig.server.step()  # the third may come yet
            assert parked(answers[worker])
    rig.server.step()
    assert rig.passes == [("a", 3 * COPIES + 3), ("b", 3 * COPIES + 3)]
    for worker, questions in asked.items():
        check(answers[worker], 7, questions)
    assert "answered 3 calls in 1 batches of 45 observations" in rig.server.describe()


def test_first_call_waits_for_others_no_longer_than_it_should(rig):
    rig = rig(3, max_wait_ms=150.0)
    rig.publish(0)
    rig.turn(0, 0)
    rig.turn(1, 0)
    began = time.monotonic()
    answers = [rig.act(worker, 0, questions_of(worker)) for worker in range(2)]
    rig.server.step()
    assert all(parked(answer) for answer in answers)
    while any(parked(answer) for answer in answers):
        rig.server.wait(10.0)
        rig.server.step()
    assert 0.15 <= time.monotonic() - began < 5.0
    assert len(rig.passes) == 2


def test_full_batch_waits_for_nobody_and_the_rest_makes_another(rig):
    rig = rig(4, max_batch=2 * OBSERVATIONS)
    rig.publish(0)
    asked = {worker: questions_of(worker) for worker in range(3)}
    answers = [rig.act(worker, 0, questions) for worker, questions in asked.items()]
    rig.server.step()
    assert rig.passes == [("a", 2 * COPIES), ("b", 2 * COPIES)]
    assert [parked(answer) for answer in answers] == [False, False, True]
    check(answers[1], 0, asked[1])
    large = questions_of(5, copies=5 * COPIES)
    check_later = rig.act(3, 0, large)  # larger than a batch may be, and the last who could ask
    rig.server.step()
    assert [copies for _, copies in rig.passes[2:]] == [COPIES, COPIES, 5 * COPIES, 5 * COPIES]
    check(answers[2], 0, asked[2])
    check(check_later, 0, large)


def test_workers_of_different_versions_are_answered_by_their_own(rig):
    rig = rig(2)
    rig.publish(3)
    rig.publish(4)
    asked = {worker: questions_of(worker) for worker in range(2)}
    answers = [rig.act(worker, 3 + worker, questions) for worker, questions in asked.items()]
    rig.server.step()
    assert len(rig.passes) == 4
    for worker, questions in asked.items():
        check(answers[worker], 3 + worker, questions)


def test_worker_that_waits_for_a_version_holds_up_nobody(rig):
    """As it is with a lag of one: what one worker waits for is only learned from what another still collects."""
    rig = rig(2)
    rig.publish(0)
    rig.turn(1, 0)
    ahead = rig.turn(0, 1)
    for seed in range(3):
        questions = questions_of(seed)
        answer = rig.act(1, 0, questions)
        rig.server.step()
        check(answer, 0, questions)  # at once: nobody else can ask
    assert parked(ahead)
    rig.publish(1)
    rig.server.step()
    assert value(ahead) == {"version": 1}


def test_versions_are_kept_as_long_as_a_worker_acts_by_them(rig):
    rig = rig(2)
    for version in range(4):
        rig.publish(version)
    rig.turn(0, 0)
    for version in range(4):
        rig.turn(1, version)
        assert set(rig.server.versions) == {0, version}
    rig.turn(0, 3)
    assert set(rig.server.versions) == {3}


def test_exploration_and_greedy_evaluation_have_forward_passes_of_their_own(rig):
    rig = rig(3)
    rig.publish(0)
    asked = [questions_of(0, epsilon=0.5), questions_of(1, epsilon=0.0), questions_of(2, epsilon=0.0, greedy=True)]
    answers = [rig.act(worker, 0, questions) for worker, questions in enumerate(asked)]
    rig.server.step()
    assert [copies for _, copies in rig.passes] == [COPIES] * 6
    for answer, questions in zip(answers, asked, strict=True):
        check(answer, 0, questions)


def test_worker_is_told_when_training_ended_before_its_version(rig):
    rig = rig(1)
    rig.publish(2)
    waiting = rig.turn(0, 3)
    assert parked(waiting)
    rig.parameters.finish(2)
    rig.server.step()
    assert value(waiting) == {"final": 2}
    assert value(rig.turn(0, 2)) == {"version": 2}


def test_closing_tells_all_who_wait_and_all_who_would_wait(rig):
    rig = rig(2)
    rig.publish(0)
    rig.turn(0, 0)
    waiting = [rig.turn(1, 1), rig.act(0, 0, questions_of(0))]
    assert all(parked(answer) for answer in waiting)
    rig.server.close()
    assert [value(answer) for answer in waiting] == [{"stopping": True}] * 2
    assert rig.server.turn_to(1, 2) == rig.act(0, 0, questions_of(0)) == {"stopping": True}
    rig.server.step()
    assert rig.passes == []


def test_worker_that_waits_for_a_version_of_closed_shards_is_told_on_closing(rig):
    rig = rig(1)
    waiting = rig.turn(0, 0)
    for shard in rig.shards:
        shard.close()
    rig.server.step()
    rig.server.close()
    assert value(waiting) == {"stopping": True}


def test_call_of_a_lost_worker_is_dropped_when_its_replacement_comes(rig):
    rig = rig(2)
    rig.publish(0)
    rig.turn(1, 0)
    lost = rig.act(0, 0, questions_of(0))
    rig.turn(0, 0)
    questions = questions_of(1)
    answers = [rig.act(0, 0, questions), rig.act(1, 0, questions_of(2))]
    rig.server.step()
    assert rig.passes == [("a", 2 * COPIES), ("b", 2 * COPIES)]
    assert parked(lost)
    check(answers[0], 0, questions)


def test_description_says_which_shards_have_not_given_which_version_to_whom(rig):
    rig = rig(3)
    rig.turn(2, 5)
    for name, policy in policies_of(5).items():
        rig.shards[0].publish(name, 5, flat(policy)[:1])
    text = rig.server.describe()
    assert "version 5, which rollout/2 asked for, hasn't come from parameter/1 in 0 s" in text
    assert "versions: none" in text


# through a worker's client


def client_of(rig, worker=0):
    outlines = {name: build_policy([group], NETWORK).double().to("meta") for name, group in GROUPS.items()}
    return InferenceClient(LocalPeer("inference/0", rig.server), worker, outlines, Someone(), Clock())


def test_client_acts_by_the_version_that_it_turned_to(rig):
    rig = rig(2, alone=True)
    client = client_of(rig)
    for version in range(2):
        rig.publish(version)
        assert client.turn_to(version) is None
        questions = questions_of(version)
        said, expected = client.act(questions), OwnPolicies(policies_of(version)).act(questions)
        for name in GROUPS:
            torch.testing.assert_close(said[name].actions, expected[name].actions)
            torch.testing.assert_close(said[name].memory, expected[name].memory)
    rig.parameters.finish(1)
    assert client.turn_to(2) == 1


def test_client_of_a_version_that_never_comes_says_who_is_waited_for(rig):
    rig = rig(1, alone=True)
    with pytest.raises(RuntimeError, match=r"inference/0 gave rollout/0 nothing .* version 4, .* parameter/0, parameter/1"):
        client_of(rig).turn_to(4)


def test_client_of_a_closed_server_stops(rig):
    rig = rig(1, alone=True)
    rig.server.close()
    with pytest.raises(Stopping):
        client_of(rig).turn_to(0)


# following the newest policies, in asynchronous training

MEMBERS = {"one": ("a", "b")}


class FollowingRig(Rig):
    """A server that follows two optimizing shards; the policies' vector is trained by handing in gradients."""

    def __init__(self, monkeypatch, workers, **options):
        super().__init__(monkeypatch, workers, **options)
        coordinator = Coordinator({"one": Clocks(range(1))}, 10**9, 10)
        shards = [OptimizingShard(i, 2, coordinator if i == 0 else None) for i in range(2)]
        self.servers, self.client = (
            ParameterServers([LocalPeer(f"parameter/{i}", s) for i, s in enumerate(shards)], Someone(), Clock(), torch.float64)
            for _ in range(2)
        )
        self.server = FollowingServer(
            0, policies_of(99), MEMBERS, self.client, workers, Inference(**{"max_wait_ms": LONG, **options}), Clock()
        )
        self.values = torch.cat([flat(policy) for policy in policies_of(0).values()])
        spec = {"name": "sgd", "lr": 1.0, "eps": 1e-5, "weight_decay": 0.0, "momentum": 0.0}
        self.servers.define("one", self.values, len(self.values), [(0, len(self.values), spec)])
        self.pushed = 0

    def push(self):
        """A gradient that moves all numbers; the policies after it."""
        base = self.servers.latest("one").version
        answer = self.servers.exchange("one", 0, self.pushed, torch.full_like(self.values, 0.01), -1, (base, 0), None)
        self.pushed += 1
        policies = policies_of(0)
        for name, values in split({"one": answer.values}, MEMBERS, policies).items():
            load_flat(policies[name], values)
        return policies

    def newest(self, worker):
        reply = self.server.newest(worker)
        self.server.step()
        return value(reply)


def assert_acts_by(rig, worker, version, policies):
    questions = questions_of(worker)
    reply = rig.act(worker, version, questions)
    for other in set(rig.server.used) - {worker}:
        rig.server.newest(other)  # so that nobody is waited for
    rig.server.step()
    expected = OwnPolicies(policies).act(questions)
    for name, said in value(reply).items():
        torch.testing.assert_close(said[0], expected[name].actions)
        torch.testing.assert_close(said[1], expected[name].log_probs)


def test_following_role_acts_by_what_was_newest_when_each_worker_asked(monkeypatch):
    rig = FollowingRig(monkeypatch, 1)
    before = policies_of(0)
    first = rig.newest(0)
    assert first["versions"] == {"one": 0}
    after = rig.push()
    assert_acts_by(rig, 0, first["version"], before)  # a fragment is of one version
    second = rig.newest(0)
    assert second["versions"]["one"] > 0
    assert second["version"] != first["version"]
    assert_acts_by(rig, 0, second["version"], after)
    assert rig.newest(0) == second  # nothing is newer


def test_following_role_answers_all_who_ask_at_once_from_one_read(monkeypatch):
    rig = FollowingRig(monkeypatch, 3)
    replies = [rig.server.newest(worker) for worker in range(3)]
    assert all(parked(reply) for reply in replies)
    reads = []
    plain = rig.client.newest
    monkeypatch.setattr(rig.client, "newest", lambda have: reads.append(dict(have)) or plain(have))
    rig.server.step()
    assert len({value(reply)["version"] for reply in replies}) == 1
    assert reads == [{}]


def test_following_role_keeps_pinned_policies_while_somebody_acts_by_them(monkeypatch):
    rig = FollowingRig(monkeypatch, 1)
    pinned = rig.push()
    assert rig.servers.learned("one", 0, 0, 10)["evaluation"] == 1
    rig.push()
    reply = rig.server.turn_to_pin(0, "evaluation/1")
    rig.server.step()
    assert value(reply)["version"] == "evaluation/1"
    assert_acts_by(rig, 0, "evaluation/1", pinned)
    assert set(rig.server.versions) == {"evaluation/1"}
    rig.newest(0)
    assert "evaluation/1" not in rig.server.versions


def test_following_role_tells_who_waits_that_it_closes(monkeypatch):
    rig = FollowingRig(monkeypatch, 1)
    reply = rig.server.newest(0)
    assert "no policies yet for rollout/0" in rig.server.describe()
    rig.server.close()
    assert value(reply) == {"stopping": True}
    rig.server.step()
    assert value(rig.server.newest(0)) == {"stopping": True}


# whole runs in one process

RUNS = {
    "a memory, masks and separate groups": (
        "algorithm.gru=4", "algorithm.chunk=5", "groups=separate", "env.name=rigs.games:board", "env.masked=true",
    ),
    "continuous actions": ("env.continuous_actions=true",),
    "exploration": ("algorithm=dqn", "algorithm.batch=4", "algorithm.starts=1"),
    "a joint policy": ("paradigm=centralized", "algorithm.autoregressive=true", "algorithm.gru=4", "algorithm.chunk=5"),
}  # fmt: skip


@pytest.mark.parametrize("sync", ["bsp", "asp"])
@pytest.mark.parametrize("run", RUNS)
def test_run_with_an_inference_role_trains_the_policies_of_one_without(tmp_path, run, sync):
    values = []
    for count in (0, 1):
        folder = tmp_path / str(count)
        metrics = inline.train(
            folder, "dtype=float64", "budget.env_steps=120", "evaluate.every_steps=40", f"roles.inference={count}", f"sync={sync}", *RUNS[run]
        )  # fmt: skip
        files = sorted((folder / "policies").glob("*.safetensors"))
        evaluated = [line["evaluate/return_mean"] for line in metrics if "evaluate/return_mean" in line]
        values.append((torch.cat([load_file(file)["values"] for file in files]), evaluated))
    assert (values[0][0] - values[1][0]).abs().max() < 1e-9
    assert values[0][1] == pytest.approx(values[1][1])
    assert len(values[0][1]) > 1
