"""Distributions over actions, by action space: from a network's outputs to samples, log-probabilities and entropies.

Stateless: everything is a function of the parameters [..., P] that a policy gives for an agent and of the noise that a draw is
decided by, so that who draws doesn't matter. Pure torch.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from marl_hpc.types import ActionSpace

HEADS = ("stochastic", "squashed", "bounded", "values")
LOG_STD = (-5.0, 2.0)  # limits of a state-dependent deviation, as SAC implementations use


class Distribution(Protocol):
    outputs: int  # numbers that the network gives for an agent
    noise: int  # numbers that a draw takes

    def parameters(self, outputs: Tensor, mask: Tensor | None) -> Tensor:
        """Network outputs [..., outputs] and a mask of legal choices to the distribution's parameters [..., P]."""
        ...

    def sample(self, parameters: Tensor, noise: Tensor) -> Tensor:
        """An action [..., *action_shape] from `noise` [..., noise]: uniform in (0, 1) for choices, normal for boxes."""
        ...

    def mode(self, parameters: Tensor) -> Tensor:
        """The most likely action."""
        ...

    def log_prob(self, parameters: Tensor, action: Tensor) -> Tensor:
        """[...], of an action that `sample` may have given."""
        ...

    def entropy(self, parameters: Tensor) -> Tensor:
        """[...], in nats."""
        ...


class Categorical:
    """One choice, or several independent ones (multi-discrete). Parameters are log-probabilities.

    Drawn by the Gumbel-max trick (Maddison et al. 2014), so that the draw is decided by the noise alone.
    """

    def __init__(self, space: ActionSpace) -> None:
        self.choices, self.several = list(space.choices), space.kind == "multi_discrete"
        self.outputs = self.noise = space.size

    def parameters(self, outputs: Tensor, mask: Tensor | None) -> Tensor:
        if mask is not None:
            outputs = outputs.masked_fill(~mask, torch.finfo(outputs.dtype).min)
        if not self.several:
            return outputs.log_softmax(-1)
        return torch.cat([part.log_softmax(-1) for part in outputs.split(self.choices, -1)], -1)

    def sample(self, parameters: Tensor, noise: Tensor) -> Tensor:
        return self.best(parameters - torch.log(-torch.log(noise)))

    def mode(self, parameters: Tensor) -> Tensor:
        return self.best(parameters)

    def best(self, scores: Tensor) -> Tensor:
        """The choice with the highest score, of each part."""
        if not self.several:
            return scores.argmax(-1)
        return torch.stack([part.argmax(-1) for part in scores.split(self.choices, -1)], -1)

    def chosen(self, scores: Tensor, action: Tensor) -> Tensor:
        """The score [...] of an action: the sum of its parts' scores."""
        if not self.several:
            return scores.gather(-1, action.long().unsqueeze(-1)).squeeze(-1)
        parts = zip(scores.split(self.choices, -1), action.long().unbind(-1), strict=True)
        return torch.stack([part.gather(-1, choice.unsqueeze(-1)).squeeze(-1) for part, choice in parts]).sum(0)

    def relaxed(self, parameters: Tensor, noise: Tensor, temperature: float) -> Tensor:
        """What `sample` draws as one-hots [..., size], with the gradient of the softmax that it is the limit of: the straight-through
        Gumbel-softmax estimator (Jang et al. 2017). Illegal choices have no gradient."""
        scores = (parameters - torch.log(-torch.log(noise))) / temperature
        soft = torch.cat([part.softmax(-1) for part in scores.split(self.choices, -1)], -1)
        return self.one_hot(self.best(scores), soft.dtype) + soft - soft.detach()

    def one_hot(self, action: Tensor, dtype: torch.dtype) -> Tensor:
        """[..., size]: one number per choice."""
        parts = [action] if not self.several else list(action.unbind(-1))
        encoded = [torch.nn.functional.one_hot(part.long(), n) for part, n in zip(parts, self.choices, strict=True)]
        return torch.cat(encoded, -1).to(dtype)

    def log_prob(self, parameters: Tensor, action: Tensor) -> Tensor:
        return self.chosen(parameters, action)

    def entropy(self, parameters: Tensor) -> Tensor:
        probabilities = parameters.exp()
        # an illegal choice's log-probability is the lowest number there is: times a weight above 1 it would be infinite
        return -(probabilities * parameters.masked_fill(probabilities == 0, 0)).sum(-1)


class Gaussian:
    """A diagonal Gaussian. Parameters are means and log-deviations [..., 2A]; the deviation comes from outside (`log_std`)."""

    def __init__(self, space: ActionSpace) -> None:
        self.outputs = self.noise = space.size

    def parameters(self, outputs: Tensor, mask: Tensor | None, log_std: Tensor | None = None) -> Tensor:
        assert log_std is not None
        return torch.cat([outputs, log_std.expand_as(outputs)], -1)

    def sample(self, parameters: Tensor, noise: Tensor) -> Tensor:
        mean, log_std = parameters.chunk(2, -1)
        return mean + noise * log_std.exp()

    def mode(self, parameters: Tensor) -> Tensor:
        return parameters.chunk(2, -1)[0]

    def log_prob(self, parameters: Tensor, action: Tensor) -> Tensor:
        mean, log_std = parameters.chunk(2, -1)
        z = (action - mean) * (-log_std).exp()
        return (-0.5 * (z * z + math.log(2 * math.pi)) - log_std).sum(-1)

    def entropy(self, parameters: Tensor) -> Tensor:
        return (parameters.chunk(2, -1)[1] + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)


class Bounded(Gaussian):
    """A deterministic action in [-1, 1] with Gaussian noise for exploration, as DDPG explores (Lillicrap et al. 2016)."""

    def parameters(self, outputs: Tensor, mask: Tensor | None, log_std: Tensor | None = None) -> Tensor:
        return super().parameters(outputs.tanh(), mask, log_std)

    def sample(self, parameters: Tensor, noise: Tensor) -> Tensor:
        return super().sample(parameters, noise).clamp(-1, 1)


class Squashed(Gaussian):
    """A Gaussian through tanh, with a deviation that depends on the observation (Haarnoja et al. 2018, appendix C)."""

    def __init__(self, space: ActionSpace) -> None:
        self.outputs, self.noise = 2 * space.size, space.size

    def parameters(self, outputs: Tensor, mask: Tensor | None, log_std: Tensor | None = None) -> Tensor:
        mean, free = outputs.chunk(2, -1)
        low, high = LOG_STD
        return torch.cat([mean, low + 0.5 * (high - low) * (free.tanh() + 1)], -1)

    def sample(self, parameters: Tensor, noise: Tensor) -> Tensor:
        return super().sample(parameters, noise).tanh()

    def mode(self, parameters: Tensor) -> Tensor:
        return super().mode(parameters).tanh()

    def log_prob(self, parameters: Tensor, action: Tensor) -> Tensor:
        edge = 1 - 1e-6
        return self.log_prob_before(parameters, torch.atanh(action.clamp(-edge, edge)))

    def log_prob_before(self, parameters: Tensor, before: Tensor) -> Tensor:
        """Of the action tanh(before): nothing is lost at the edges, where tanh rounds to 1."""
        # log(1 - tanh(u)^2), in a form that keeps its digits for large u
        change = 2 * (math.log(2) - before - torch.nn.functional.softplus(-2 * before))
        return super().log_prob(parameters, before) - change.sum(-1)

    def draw(self, parameters: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """(`sample`, its log-probability), with gradients through both."""
        before = super().sample(parameters, noise)
        return before.tanh(), self.log_prob_before(parameters, before)

    def entropy(self, parameters: Tensor) -> Tensor:
        """Of the Gaussian before tanh, an upper bound up to a constant: the squashed one has no closed form."""
        return super().entropy(parameters)


def distribution_of(space: ActionSpace, head: str) -> Categorical | Gaussian:
    """The distribution that a head plays on a space: `stochastic` learns it, `squashed` (SAC), `bounded` (DDPG), `values` (by Q)."""
    if space.kind != "box":
        return Categorical(space)
    return {"stochastic": Gaussian, "bounded": Bounded, "squashed": Squashed}[head](space)


def draw_noise(space: ActionSpace, generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Noise [*shape, noise] for `sample`, float64."""
    if space.kind == "box":
        return generator.standard_normal((*shape, space.size))
    # neither 0 nor 1, also after rounding to float32: their Gumbel noise would be infinite and could beat a mask
    return np.clip(generator.random((*shape, space.size)), 2.0**-24, 1 - 2.0**-24)
