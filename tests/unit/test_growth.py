"""What a learner learns from where populations are, by itself and as one of two replicas."""

from copy import copy

import pytest
import torch
from rigs import inline
from rigs.replicas import Alone, Pair

from marl_hpc.metrics import Clock
from marl_hpc.roles.learner import Learner
from marl_hpc.roles.replica import Replica

KUHN = ("env=openspiel_fast/kuhn_poker", "groups=separate", "population.every_steps=400", "rollout.fragment=10")


@pytest.mark.parametrize(
    ("scheme", "copies"),
    [
        (("population=psro", "rollout.envs=8"), 4),
        (("population=pipeline_psro", "population.levels=2", "rollout.envs=4"), 1),  # none at all of the second replica's
        (("population=psro", "rollout.envs=8", "algorithm.gru=4"), 4),
    ],
)
def test_two_replicas_learn_from_the_minibatches_of_one(tmp_path, monkeypatch, scheme, copies):
    seen = []
    learn = Learner.learn

    def noting(self, k, batches):
        seen.append((self, batches[0]))
        return learn(self, k, batches)

    monkeypatch.setattr(Learner, "learn", noting)
    rank = inline.rank(tmp_path, *KUHN, *scheme)
    assert rank.run() == 0
    (learner, batch), plan = seen[0], rank.builder.plans[0]
    total = len(batch.columns)

    def learned(exchange, part, parts):
        agent = plan.agent(
            plan.algorithm, plan.options, plan.interface, exchange, device=torch.device("cpu"), dtype=torch.float32, seed=0
        )
        own = copy(learner)
        own.replicas, own.single, own.clock = [Replica(agent, part, parts)], True, Clock()
        mine = slice(part * total // parts, (part + 1) * total // parts)
        given = {name: x[:, mine] for name, x in batch.parts.items()}
        useful = learner.growth.useful(plan.interface, given, batch.columns[mine], total)
        assert useful[2] == copies
        metrics, _, failed = learn(own, 0, [batch._replace(parts=given, columns=batch.columns[mine])])
        assert not failed
        return agent.parameters.values.detach().clone(), metrics, len(useful[1])

    alone, metrics, count = learned(Alone(), 0, 1)
    (first, some, own), (second, _, others) = Pair().run(lambda exchange, part: learned(exchange, part, 2))
    assert count == own + others == copies
    assert torch.equal(first, second)
    torch.testing.assert_close(first, alone, rtol=1e-4, atol=1e-6)
    names = metrics.keys() - {"loss/first_ratio_deviation"}  # replicas add up their largest ones
    assert {name: some[name] for name in names} == pytest.approx({name: metrics[name] for name in names}, rel=1e-3, abs=1e-5)
