"""Neural fictitious self-play: two policies in one, who acts, and what each learns from."""

import numpy as np
import pytest
import torch
from rigs import inline
from rigs.batches import batch_of
from rigs.replicas import Alone

from marl_hpc.actors import AverageActor
from marl_hpc.algorithms.dqn import DQN, DQNConfig
from marl_hpc.algorithms.nfsp import NFSP, NFSPConfig
from marl_hpc.config import ConfigError
from marl_hpc.networks import load_flat
from marl_hpc.storage.fragments import unpack
from marl_hpc.storage.reservoir import Reservoir
from marl_hpc.types import ActionSpace, GroupSpec, InterfaceSpec

GROUP = GroupSpec(
    name="g", agents=("a", "b"), observation_shape=(3,), action_space=ActionSpace(kind="discrete", n=4), action_mask=True
)
RUN = (
    "env=openspiel_fast/kuhn_poker", "population=nfsp", "algorithm=nfsp", "algorithm.starts=40", "algorithm.batch=16",
    "algorithm.average_batch=32", "population.every_steps=80", "rollout.fragment=10", "budget.env_steps=240",
)  # fmt: skip


def interface_of(modes=True):
    return InterfaceSpec(name="g", paradigm="independent", groups=(GROUP,), modes=modes)


def build():
    return NFSP(NFSPConfig(hidden=[6]), interface_of(), Alone(), device="cpu", dtype=torch.float64, seed=0)


def minibatch_of(algorithm):
    generator = torch.Generator().manual_seed(1)
    batch = {**batch_of(interface_of(False), 1, 20), "weight": torch.ones(1, 20, dtype=torch.float64)}
    mask = torch.rand(30, 4, generator=generator) < 0.5
    action = torch.randint(4, (30,), generator=generator)
    mask[torch.arange(30), action] = True
    done = {
        "observation": torch.randn(30, 3, generator=generator, dtype=torch.float64), "action": action, "action_mask": mask,
        "agent": torch.randint(2, (30,), generator=generator),
    }  # fmt: skip
    return {**batch, **{f"average/{name}": x[None] for name, x in done.items()}}, done


def test_each_network_has_its_own_gradient():
    algorithm = build()
    minibatch, done = minibatch_of(algorithm)
    loss, sums = algorithm.loss(minibatch)
    algorithm.parameters.message.zero_()
    loss.backward()
    found = algorithm.parameters.values.grad / sums["count"]
    policy = algorithm.policies["g"]
    total = 0.0
    for i in range(30):  # agent by agent: -log π(a | o), legal actions only
        seen = torch.zeros(1, 2, 3, dtype=torch.float64)
        seen[0, done["agent"][i]] = done["observation"][i]
        outputs = policy.network.step(seen, torch.zeros(1, 2, 0))[0][0, done["agent"][i]]
        total = total - outputs[done["action_mask"][i]].log_softmax(0)[done["action_mask"][i][: done["action"][i]].sum()]
    average = torch.cat([g.flatten() for g in torch.autograd.grad(total / 30, list(policy.network.parameters()))])
    parts = algorithm.parts()
    torch.testing.assert_close(found[parts[0][0]], average)
    alone = DQN(DQNConfig(hidden=[6]), interface_of(False), Alone(), device="cpu", dtype=torch.float64, seed=0)
    load_flat(alone.policies["g"], torch.cat([p.detach().flatten() for p in policy.response.parameters()]))
    load_flat(
        alone.target_policies["g"], torch.cat([p.detach().flatten() for p in algorithm.target_policies["g"].response.parameters()])
    )
    alone.parameters.message.zero_()
    own, _ = alone.loss({name: x for name, x in minibatch.items() if not name.startswith("average/")})
    own.backward()
    torch.testing.assert_close(found[parts[1][0]], alone.parameters.values.grad / sums["count"])
    assert [lr for _, lr in parts] == [algorithm.config.average_lr, algorithm.config.lr]


def test_who_acts_by_its_best_response_takes_the_best_legal_action_and_others_draw():
    policy = build().policies["g"]
    assert isinstance(policy, AverageActor)
    random = np.random.default_rng(0)
    observation = torch.from_numpy(random.normal(size=(200, 2, 3)))
    mask = torch.from_numpy(random.random((200, 2, 4)) < 0.6)
    mask[..., 0] = True
    responds = torch.from_numpy(random.random((200, 2)) < 0.5)
    noise = {"g": torch.from_numpy(random.random((200, 2, 4)))}
    fields = {"observation": observation, "active": torch.ones(200, 2, dtype=torch.bool), "action_mask": mask}
    with torch.no_grad():
        drawn, _, _ = policy.act({"g": fields}, torch.zeros(200, 2, 0), noise)
        both, _, _ = policy.act({"g": {**fields, "best_response": responds}}, torch.zeros(200, 2, 0), noise)
        values = policy.response.values_of(observation, torch.zeros(200, 2, 0)).masked_fill(~mask, -torch.inf)
    assert torch.equal(both["g"][responds], values.argmax(-1)[responds])
    assert torch.equal(both["g"][~responds], drawn["g"][~responds])
    assert not torch.equal(both["g"], drawn["g"])


def test_modes_are_drawn_by_player_and_episode_and_rows_say_them(tmp_path, monkeypatch):
    from marl_hpc.roles.rollout import RolloutWorker

    collect, seen = RolloutWorker.collect, []

    def noting(self, sequence):
        packed, ended = collect(self, sequence)
        seen.append(packed)
        return packed, ended

    monkeypatch.setattr(RolloutWorker, "collect", noting)
    rank = inline.rank(
        tmp_path,
        *RUN,
        "population.anticipatory=0.3",
        "rollout.envs=8",
        "rollout.fragment=30",
        "population.every_steps=240",
        "budget.env_steps=960",
    )
    assert rank.run() == 0
    (plan,) = rank.builder.plans
    responds = []
    for packed in seen:
        batch = unpack(packed[plan.interface.name], plan.interface, "float32")
        modes, first = batch["shared/best_response"], batch["first"]
        same = (modes[1:] == modes[:-1]).all(-1) | first[1:]
        assert same.all()  # as long as an episode lasts
        responds.append(modes[first])
        assert batch["shared/active"].any(-1).all()
    share = torch.cat(responds).double().mean(0)
    assert ((share - 0.3).abs() < 0.12).all()
    assert (torch.cat(responds)[:, 0] != torch.cat(responds)[:, 1]).any()


def test_a_resumed_run_has_the_reservoir_of_one_that_was_never_stopped(tmp_path):
    options = (*RUN, "checkpoint.every_steps=80")
    whole = inline.train(tmp_path / "whole", *options)
    assert inline.rank(tmp_path / "parts", *options, "budget.env_steps=160").run() == 0
    parts = inline.train(tmp_path / "parts", *options, resume=True)
    for name in ("loss/imitation", "population/nash_conv"):
        assert [line[name] for line in parts if name in line] == [line[name] for line in whole if name in line]
    assert any("loss/imitation" in line for line in whole)


SMALL = ("population.anticipatory=0.3", "algorithm.reservoir=64", "population.every_steps=240", "checkpoint.every_steps=240")


def noted(rank):
    """The run's dataset shards as they are built, each with what its reservoir has seen by then."""
    build, shards = rank.builder.dataset, []

    def noting(index):
        shard = build(index)
        shards.append((shard, shard.reservoirs["shared"].seen))
        return shard

    rank.builder.dataset = noting
    return shards


@pytest.fixture
def something_was_done(monkeypatch):
    """Whatever a reservoir gives is an action that was legal."""
    draw = Reservoir.draw

    def checked(self, random, updates):
        drawn = draw(self, random, updates)
        assert drawn["action_mask"].gather(-1, drawn["action"][..., None].long()).all()
        return drawn

    monkeypatch.setattr(Reservoir, "draw", checked)


@pytest.mark.usefixtures("something_was_done")
def test_two_shards_imitate_what_best_responses_did_over_both(tmp_path):
    rank = inline.rank(tmp_path, *RUN, *SMALL, "roles.dataset=2", "roles.rollout=2", "budget.env_steps=960")
    shards = noted(rank)
    assert rank.run() == 0
    reservoirs = [shard.reservoirs["shared"] for shard, _ in shards]
    assert [own.size for own in reservoirs] == [own.capacity for own in reservoirs] == [32, 32]
    lines = inline.metrics(tmp_path)
    imitated = [line["loss/imitation"] for line in lines if "loss/imitation" in line]
    assert len(imitated) > 5
    assert all(0 < loss < 2 for loss in imitated)
    assert [line["population/size"] for line in lines if "population/size" in line] == [1, 2, 3, 4, 5]


@pytest.mark.usefixtures("something_was_done")
@pytest.mark.parametrize(("first", "then"), [((2, 2), (1, 1)), ((1, 1), (2, 2)), ((2, 2), (3, 3)), ((2, 2), (2, 3))])
def test_a_run_goes_on_with_other_numbers_of_shards_and_workers(tmp_path, capsys, first, then):
    def options(layout, steps):
        dataset, rollout = layout
        return (*RUN, *SMALL, f"roles.dataset={dataset}", f"roles.rollout={rollout}", f"budget.env_steps={steps}")

    rank = inline.rank(tmp_path, *options(first, 960))
    shards = noted(rank)
    assert rank.run() == 0
    seen = sum(shard.reservoirs["shared"].seen for shard, _ in shards)
    rank = inline.rank(tmp_path, *options(then, 1920), resume=True)
    shards = noted(rank)
    assert rank.run() == 0
    said = capsys.readouterr().out
    assert ("the replay of 1 of the checkpoint's 2 shards is left behind" in said) == (then[0] < first[0])
    assert ("has no replay for it" in said) == (then[0] > first[0])
    assert len(shards) == then[0]
    assert sum(before for _, before in shards) == seen > 64
    assert sum(shard.reservoirs["shared"].seen for shard, _ in shards) > seen
    assert sum(shard.reservoirs["shared"].size for shard, _ in shards) >= 60


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["population=nfsp"], "set both, or neither"),
        (["algorithm=nfsp"], "set both, or neither"),
        (["population=nfsp", "algorithm=nfsp", "algorithm.gru=4"], "set gru=0"),
        (["population=nfsp", "algorithm=nfsp", "population.anticipatory=0"], "above 0"),
        (["population=nfsp", "algorithm=nfsp", "population.fresh=true"], "leave it out"),
    ],
)
def test_what_cant_be_is_refused(tmp_path, overrides, said):
    with pytest.raises(ConfigError, match=said):
        inline.rank(tmp_path, "env=openspiel_fast/kuhn_poker", *overrides)
