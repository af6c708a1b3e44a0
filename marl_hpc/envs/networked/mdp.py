"""The random networked MDP of Zhang, Yang, Liu, Zhang & Basar 2018 (ICML, section 6), for 2 agents or a million.

All agents see the state, act at once and get private rewards; together they want the highest average of all rewards in the long run.
Every probability and reward is hashed from the MDP's seed, the joint action and the state, so that nothing is stored: 20 agents have 2²⁰
joint actions. Where there are few, `RandomMDP.tables` writes the same numbers out, and `average_reward` solves them exactly.
May import envs, types and config only, besides third-party packages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from marl_hpc.config import ConfigError
from marl_hpc.envs.networked.batch import Groups, NetworkedBatch, at_least
from marl_hpc.envs.networked.hashing import uniform, words

NAME = "networked/mdp"
# what a number is drawn for: of an MDP, and of an episode
ACTION, TRANSITION, REWARD, POLICY_FEATURE, CRITIC_FEATURE, START, NEXT, NOISE, CHOICE = range(9)
HIGHEST_REWARD, ERGODICITY = 4.0, 1e-5
LARGEST_TABLE = 50_000_000  # numbers: 400 MB


class Tables(NamedTuple):
    """An MDP written out, by joint action, state and next state or agent; agent 0's action changes slowest."""

    transition: np.ndarray  # [A^N, S, S]
    reward: np.ndarray  # [A^N, S, N], means


@dataclass(frozen=True, kw_only=True)
class RandomMDP:
    """An MDP with S `states`, N `agents` and A `actions` each, wholly defined by its seed.

    Transition probabilities are uniform numbers divided by their sum, plus 1e-5 so that every state is reached from every other, and
    divided by their sum again; mean rewards are uniform in [0, 4], for each agent its own. Joint actions go by keys of 64 bits.

    >>> mdp = RandomMDP(agents=3, states=4)
    >>> key = mdp.joint(np.array([0, 1, 1]))
    >>> bool(np.allclose(mdp.transition(2, key), mdp.tables().transition[0b011, 2]))
    True
    """

    agents: int = 8
    states: int = 20
    actions: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        at_least(NAME, agents=(self.agents, 1), states=(self.states, 1), actions=(self.actions, 1), seed=(self.seed, 0))

    def joint(self, actions: np.ndarray) -> np.ndarray:
        """Keys [...] of joint actions [..., N]: random words of each agent's action, combined (Zobrist 1970)."""
        return np.bitwise_xor.reduce(np.take(self._words, actions + self._offsets), axis=-1)

    def transition(self, state: np.ndarray | int, joint: np.ndarray) -> np.ndarray:
        """Probabilities of the next state [..., S] by states [...] and keys of joint actions [...]."""
        drawn = uniform(self.seed, TRANSITION, joint[..., None], np.asarray(state)[..., None], np.arange(self.states))
        chance = drawn / drawn.sum(-1, keepdims=True) + ERGODICITY
        return chance / chance.sum(-1, keepdims=True)

    def mean_reward(self, state: np.ndarray | int, joint: np.ndarray) -> np.ndarray:
        """Each agent's mean reward [..., N] by states [...] and keys of joint actions [...]."""
        return HIGHEST_REWARD * uniform(self.seed, REWARD, joint[..., None], np.asarray(state)[..., None], np.arange(self.agents))

    def joint_actions(self) -> np.ndarray:
        """All joint actions [A^N, N] in the order of tables. Raises ValueError where their tables would be too large."""
        count = self.actions**self.agents
        if count * self.states * (self.states + self.agents) > LARGEST_TABLE:
            raise ValueError(
                f"{self.agents} agents with {self.actions} actions each have {self.actions}^{self.agents} joint actions, too many for "
                "tables; take fewer agents, or simulated_average_reward"
            )
        return np.arange(count)[:, None] // self.actions ** np.arange(self.agents)[::-1] % self.actions

    def tables(self) -> Tables:
        """All numbers at once. Raises ValueError where these would be more than LARGEST_TABLE."""
        joint, state = self.joint(self.joint_actions())[:, None], np.arange(self.states)
        joint, state = np.broadcast_arrays(joint, state)
        return Tables(self.transition(state, joint), self.mean_reward(state, joint))

    def policy_features(self, size: int = 5) -> np.ndarray:
        """Features [N, S, A, size] for Boltzmann policies, uniform in [0, 1]."""
        agent, state, action = (part[..., None] for part in np.indices((self.agents, self.states, self.actions)))
        return uniform(self.seed, POLICY_FEATURE, agent, state, action, np.arange(size))

    def critic_features(self, state: np.ndarray | int, joint: np.ndarray, size: int = 10) -> np.ndarray:
        """Features [..., size] for a linear critic of states [...] and keys of joint actions [...], uniform in [0, 1]."""
        return uniform(self.seed, CRITIC_FEATURE, joint[..., None], np.asarray(state)[..., None], np.arange(size))

    @cached_property
    def _words(self) -> np.ndarray:
        return words(self.seed, ACTION, np.arange(self.agents)[:, None], np.arange(self.actions)).ravel()

    @cached_property
    def _offsets(self) -> np.ndarray:
        return np.arange(self.agents) * self.actions


class NetworkedMDP(NetworkedBatch):
    """A `RandomMDP` (`mdp`) as an environment, and a communication graph drawn with it.

    Observations [B, N, S]: one-hot the state, the same for all agents; the state is that, too. Private rewards are the agent's mean
    plus noise, uniform within ± `noise`. A continuing task: `episode_steps` cut it off, nothing terminates it; the first state is
    uniform. This package's return divided by episode_steps estimates the paper's J, the long-run average of all agents' mean reward.

    The graph is connected and has 2 (N - 1) edges, a share of 4 / N of all pairs as in the paper, where it is drawn anew each step.
    Raises ConfigError for values that can't be.
    """

    def __init__(
        self,
        copies: int,
        groups: Groups,
        agents: int = 8,
        states: int = 20,
        actions: int = 2,
        mdp_seed: int = 0,
        noise: float = 0.5,
        episode_steps: int = 200,
    ) -> None:
        at_least(NAME, mdp_seed=(mdp_seed, 0), episode_steps=(episode_steps, 1))
        if not 0 <= noise < np.inf:
            raise ConfigError(f"env={NAME}: noise={noise} is half the width of an interval; 0 or more")
        self.mdp = RandomMDP(agents=agents, states=states, actions=actions, seed=mdp_seed)
        super().__init__(
            NAME, copies, groups, agents, states, actions, connected_graph(agents, mdp_seed),
            state_from="environment", state_shape=(states,),
        )  # fmt: skip
        self.noise, self.episode_steps = noise, episode_steps
        self.place = np.zeros(copies, int)
        self.seeds = np.zeros(copies, np.uint64)
        self._sight = np.eye(states, dtype=np.float32)

    def begin(self, copies: np.ndarray, seeds: Sequence[int]) -> None:
        self.seeds[copies] = np.array(seeds, np.uint64)
        self.place[copies] = (uniform(self.seeds[copies], START) * self.mdp.states).astype(int)

    def advance(self, chosen: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        joint = self.mdp.joint(chosen.T)
        reward = self.mdp.mean_reward(self.place, joint)
        if self.noise:
            drawn = uniform(self.seeds[:, None], NOISE, self.clock[:, None], np.arange(self.mdp.agents))
            reward += self.noise * (2 * drawn - 1)
        chance = self.mdp.transition(self.place, joint)
        self.place = pick(chance, uniform(self.seeds, NEXT, self.clock))
        return reward, np.zeros(self.copies, bool), self.clock >= self.episode_steps

    def look(self) -> np.ndarray:
        return np.repeat(self._sight[self.place][:, None], self.mdp.agents, 1)

    def state(self) -> np.ndarray:
        return self._everything()[:, 0].copy()


class Estimate(NamedTuple):
    mean: float
    standard_error: float


def simulated_average_reward(
    mdp: RandomMDP, policies: np.ndarray, *, steps: int = 500, copies: int = 32, burn_in: int = 50, seed: int = 0
) -> Estimate:
    """The long-run average over agents of rewards under policies [N, S, A], by simulation where tables would be too large.

    Mean rewards are counted, without noise; the standard error comes from the copies, which are independent. Raises ValueError when
    the shape is another, or for less than two copies.
    """
    expected = (mdp.agents, mdp.states, mdp.actions)
    if np.shape(policies) != expected:
        raise ValueError(f"policies have shape {np.shape(policies)}; expected {expected}: agents, states, actions")
    if copies < 2:
        raise ValueError(f"copies={copies}: a standard error needs at least 2")
    agent, copy = np.arange(mdp.agents), np.arange(copies)
    state, total = np.zeros(copies, int), np.zeros(copies)
    for step in range(burn_in + steps):
        drawn = uniform(seed, CHOICE, step, copy[:, None], agent)
        joint = mdp.joint(pick(policies[agent, state[:, None]], drawn))
        if step >= burn_in:
            total += mdp.mean_reward(state, joint).mean(-1)
        state = pick(mdp.transition(state, joint), uniform(seed, NEXT, step, copy))
    return Estimate(float(total.mean() / steps), float(total.std(ddof=1) / steps / np.sqrt(copies)))


def pick(chance: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Choices [...] by probabilities [..., K] and uniform numbers [...].

    >>> pick(np.array([[0.25, 0.75]] * 3), np.array([0.0, 0.25, 0.99])).tolist()
    [0, 1, 1]
    """
    # the last one takes what rounding leaves of 1
    return (drawn[..., None] >= chance.cumsum(-1)[..., :-1]).sum(-1)


def connected_graph(n: int, seed: int) -> np.ndarray:
    """Edges [E, 2] of a random connected graph: a random recursive tree, and as many edges again anywhere, or all that there are."""
    random = np.random.default_rng([seed, n])
    order = random.permutation(n)
    parent = (random.random(n - 1) * np.arange(1, n)).astype(int)
    low, high = np.sort(np.stack([order[1:], order[parent]]), axis=0)
    codes, wanted = low * n + high, min(2 * (n - 1), n * (n - 1) // 2)
    while len(codes) < wanted:
        low, high = np.sort(random.integers(0, n, (2, wanted)), axis=0)
        codes = np.concatenate([codes, (low * n + high)[low < high]])
        _, first = np.unique(codes, return_index=True)
        codes = codes[np.sort(first)][:wanted]
    return np.stack([codes // n, codes % n], 1)
