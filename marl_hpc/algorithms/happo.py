"""Heterogeneous-agent PPO (Kuba et al. 2022, algorithm 4): agents of a team are updated one after the other.

The advantage that an agent's update uses is multiplied by how the agents before it have changed their policies, the product of their
ratios. So the team improves monotonically though agents share nothing: each has a policy of its own. Critics learn last, in a pass of
their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from marl_hpc.algorithms import Batch
from marl_hpc.algorithms.ppo import PPO, PPOConfig
from marl_hpc.config import ConfigError
from marl_hpc.keyed_random import MINIBATCH, generator, integer
from marl_hpc.types import InterfaceSpec


class HAPPO(PPO):
    networked = False

    @classmethod
    def check(cls, config: PPOConfig, interface: InterfaceSpec, fragment: int) -> None:
        super().check(config, interface, fragment)
        if interface.critic_sees != "state":
            raise ConfigError(f"algorithm=happo needs paradigm=ctde; got paradigm={interface.paradigm}: use algorithm=ppo there")
        if interface.team_reward == "individual":
            raise ConfigError("algorithm=happo improves one value of the team: team_reward must be mean or sum")
        for group in interface.groups:
            if len(group.agents) > 1:
                raise ConfigError(
                    f"algorithm=happo shares no policies, but group {group.name!r} has {len(group.agents)} agents: set groups=separate"
                )

    def parts(self) -> list[tuple[slice, float]]:
        """Each policy, and the critics: momentum of one must not move another that isn't trained."""
        return [(slice(start, stop), self.config.lr) for start, stop in pairwise([0, *accumulate(self.parameters.sizes)])]

    def minibatches(self, batch: Batch, columns: Tensor, total: int, seed: int, env_steps: int) -> Iterator[Batch]:
        """As `ActorCritic.minibatches`, for each agent in a random order that is the same on all replicas, then for the critics."""
        batch = self.with_advantages(batch)
        factor = torch.ones_like(batch["advantage"][..., :1])  # [T, B, 1], the product over agents that have been updated
        agents = len(self.policies)
        for place in generator(seed, MINIBATCH, agents).permutation(agents).tolist():
            own = {**batch, "factor": factor}
            self.trained = place
            yield from self.parts_of(own, columns, total, integer(seed, MINIBATCH, place))
            with torch.no_grad():
                after = self.act(self.at_start(batch))[0][..., place : place + 1]
                before, known = batch["proximal_log_prob"][..., place : place + 1], batch["known"][..., place : place + 1]
                factor = factor * ((after - before) * known).exp()
        self.trained = agents
        yield from self.parts_of(batch, columns, total, integer(seed, MINIBATCH, agents))

    def loss(self, minibatch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """One agent's clipped surrogate and entropy, or the critics' loss, summed over samples."""
        assert self.trained is not None
        known = minibatch["known"].to(minibatch["target"].dtype)
        nothing = dict.fromkeys(self.sums, known.new_zeros(()))
        if self.trained == len(self.policies):
            value_loss = (self.value_loss(minibatch) * known).sum()
            # the critics' samples count for themselves; `summarize` counts those of the policies
            return self.config.value_weight * value_loss, {**nothing, "count": known.sum(), "value": value_loss.detach()}
        column = slice(self.trained, self.trained + 1)
        alone = {name: minibatch[name][..., column] for name in ("log_prob", "proximal_log_prob", "advantage")}
        log_probs, entropies = self.act(minibatch)
        log_prob, entropy, known = log_probs[..., column], entropies[..., column], known[..., column]
        alone["advantage"] = alone["advantage"] * minibatch["factor"]
        policy_loss, ratio = self.surrogate(alone, log_prob, known)
        loss = ((policy_loss - self.config.entropy * entropy) * known).sum()
        with torch.no_grad():
            return loss, {**nothing, **self.policy_sums(alone, log_prob, policy_loss, ratio, entropy, known)}

    def summarize(self, sums: Tensor) -> dict[str, float]:
        """Means over the policies' samples, and of the value loss over the critics'."""
        count, value = sums[:, self.sums.index("count")], sums[:, self.sums.index("value")]
        critics = len(sums) // (len(self.policies) + 1)
        metrics = super().summarize(sums[:-critics])
        return {**metrics, "loss/value": float(value[-critics:].sum() / count[-critics:].sum().clamp_min(1))}
