"""Independent learners read nobody else's data: what they ask for, what they are given, and what they never notice."""

import pytest
import torch
from rigs import inline

from marl_hpc.agents import IndependentAgent
from marl_hpc.building import Builder
from marl_hpc.roles import learner as learner_module
from marl_hpc.storage.fragments import row_dtype, unpack

AGENTS = ("x_0", "x_1", "y_0", "y_1")
BOARD = ("paradigm=independent", "groups=separate", "env.name=rigs.games:board", "env.masked=true", "algorithm.gru=4")
OPTIONS = {
    "ppo": ["algorithm=ppo", "algorithm.epochs=2", "algorithm.minibatches=2"],
    "a2c": ["algorithm=a2c"],
    "dqn": ["algorithm=dqn", "algorithm.batch=4", "algorithm.starts=1", "algorithm.priority_exponent=0.6"],
}  # fmt: skip
every = pytest.mark.parametrize("algorithm", OPTIONS)


class Spy:
    """Notes every call, and lets `change` have a look at what comes back."""

    def __init__(self, client, calls, change=lambda method, arguments, answer: answer):
        self.client, self.calls, self.change = client, calls, change

    def __getattr__(self, method):
        def call(*arguments, **named):
            answer = self.change(method, arguments, getattr(self.client, method)(*arguments, **named))
            self.calls.append((method, arguments, answer))
            return answer

        return call


def run(folder, monkeypatch, algorithm, prepare):
    """A run of three iterations, whose learner `prepare` gets before it begins."""
    kept, build = [], Builder.learner

    def building(self, *arguments):
        kept.append(build(self, *arguments))
        prepare(kept[0])
        return kept[0]

    monkeypatch.setattr(Builder, "learner", building)
    inline.train(folder, *BOARD, *OPTIONS[algorithm], "budget.env_steps=120")
    monkeypatch.undo()
    return {replica.agent.interface.name: replica.agent for replica in kept[0].replicas}


@every
def test_an_interface_asks_for_its_own_rows_and_publishes_its_own_policies_alone(tmp_path, monkeypatch, algorithm):
    data, policies, learned = [], [], []

    def prepare(learner):
        learner.dataset, learner.parameters = Spy(learner.dataset, data), Spy(learner.parameters, policies)
        for agent, _, _ in learner.replicas:
            assert isinstance(agent, IndependentAgent)

            def learn(batch, *arguments, agent=agent, plain=agent.learn, **named):
                learned.append((agent.interface.name, batch))
                return plain(batch, *arguments, **named)

            agent.learn = learn

    agents = run(tmp_path, monkeypatch, algorithm, prepare)
    assert tuple(agents) == AGENTS
    wanted = ["sample", "acknowledge"] + (["draw", "set_priorities"] if algorithm == "dqn" else [])
    for method in wanted:
        asked = [arguments[0 if method == "set_priorities" else 1] for name, arguments, _ in data if name == method]
        assert asked == list(AGENTS) * 3
    assert {name for name, _, _ in data} == {*wanted, "save", "evaluation"}
    # each learns from the answer to its own question, and its rows hold no field of another's
    answers = [
        answer if algorithm == "dqn" else answer.parts
        for name, _, answer in data
        if name == ("draw" if algorithm == "dqn" else "sample")
    ]
    assert [name for name, _ in learned] == list(AGENTS) * 3
    for (name, batch), answer in zip(learned, answers, strict=True):
        own = unpack(answer, agents[name].interface, "float32")
        assert own.keys() == batch.keys()
        assert all(torch.equal(x, batch[key]) for key, x in own.items())
        groups = {key.partition("/")[0] for key in batch if "/" in key}
        assert groups == {name}
        assert {key for key in batch if "/" not in key} <= {"first", "weight", "place", "shard"}
    # policies go out and none comes in
    assert {name for name, _, _ in policies} == {"publish", "finish", "save"}
    published = [arguments for name, arguments, _ in policies if name == "publish"]
    assert [(policy, version) for policy, version, _ in published] == [(name, version) for version in range(4) for name in AGENTS]
    for policy, version, values in published:
        assert len(values) == agents[policy].parameters.sizes[0]
        if version == 3:
            assert torch.equal(values, agents[policy].policy_values()[policy])


@every
def test_nothing_of_another_interface_reaches_an_independent_learner(tmp_path, monkeypatch, algorithm):
    """Two runs in which x_1 doesn't learn; in one of them all its rows and memories are NaN once they are asked for."""
    planted = []

    def poison(interface, parts):
        fields = {name: x for name, x in parts.items() if name.endswith("/memory")}
        rows = parts["rows"].clone()
        row = row_dtype(interface, "float32")
        view = rows.numpy().view(row).squeeze(-1)
        for name in row.names:
            if view[name].dtype.kind == "f":
                view[name] = float("nan")
                planted.append(name)
        return {**parts, **{name: torch.full_like(x, float("nan")) for name, x in fields.items()}, "rows": rows}

    def prepare(learner, bad):
        interfaces = {agent.interface.name: agent.interface for agent, _, _ in learner.replicas}

        def change(method, arguments, answer):
            if not bad or method not in ("sample", "draw") or arguments[1] != "x_1":
                return answer
            if method == "draw":
                return poison(interfaces["x_1"], answer)
            return answer._replace(parts=poison(interfaces["x_1"], answer.parts))

        learner.dataset = Spy(learner.dataset, [], change)
        (idle,) = [agent for agent, _, _ in learner.replicas if agent.interface.name == "x_1"]
        idle.learn = lambda *arguments, **named: {}
        idle.algorithm.priorities = None
        # a learner refuses data that isn't finite; here it is to be let through
        monkeypatch.setattr(learner_module, "describe_non_finite", lambda batch, interface: "")

    clean = run(tmp_path / "clean", monkeypatch, algorithm, lambda learner: prepare(learner, False))
    assert not planted
    poisoned = run(tmp_path / "poisoned", monkeypatch, algorithm, lambda learner: prepare(learner, True))
    assert {"x_1/reward", "x_1/observation"} <= set(planted)
    for name in ("x_0", "y_0", "y_1"):
        assert clean[name].updates == poisoned[name].updates > 0
        one, other = clean[name].state(), poisoned[name].state()
        assert all(torch.equal(x, other[key]) for key, x in one.items())
        assert torch.isfinite(one["values"]).all()
