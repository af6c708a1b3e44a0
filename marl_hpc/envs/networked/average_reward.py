"""Exact solutions of finite average-reward problems by linear algebra: what a policy earns in the long run, and the most there is.

Arrays: transition [M, S, S], the probability of the next state (last) by joint action and state, and reward [M, S] or [M, S, N]
(private ones), for S states, M joint actions and N agents. Policies [S, M] give each joint action's probability. Other shapes, and
chains with several recurrent classes, whose averages depend on where they start, raise ValueError. Source: Puterman 1994, chapter 8.
Imports NumPy only.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Optimum(NamedTuple):
    average: float  # the highest long-run average reward
    action: np.ndarray  # [S], the best joint action in each state
    value: np.ndarray  # [S], differential values: 0 in state 0


def product_policy(policies: np.ndarray) -> np.ndarray:
    """Joint policy [S, A^N] of agents that choose independently by policies [N, S, A]; agent 0's action changes slowest.

    >>> product_policy(np.array([[[0.25, 0.75]], [[0.5, 0.5]]])).tolist()
    [[0.125, 0.125, 0.375, 0.375]]
    """
    policies = np.asarray(policies, float)
    if policies.ndim != 3 or (policies < 0).any() or not np.allclose(policies.sum(-1), 1):
        raise ValueError(f"policies of shape {policies.shape}: expected [N, S, A], probabilities that sum to 1 over A")
    joint = np.ones((policies.shape[1], 1))
    for policy in policies:
        joint = (joint[:, :, None] * policy[:, None, :]).reshape(len(joint), -1)
    return joint


def stationary_distribution(transition: np.ndarray, policy: np.ndarray) -> np.ndarray:
    """The distribution over states [S] that a policy [S, M] keeps: d P = d."""
    return _stationary(_chain(transition, policy))


def average_reward(transition: np.ndarray, reward: np.ndarray, policy: np.ndarray) -> np.ndarray:
    """Long-run average reward J of a policy [S, M], in reward units a step: a scalar, or [N] for private rewards [M, S, N]."""
    earned = _earned(transition, reward, policy)
    return np.tensordot(stationary_distribution(transition, policy), earned, 1)


def differential_value(transition: np.ndarray, reward: np.ndarray, policy: np.ndarray) -> np.ndarray:
    """Differential values V [S] (or [S, N]): V = r_π - J + P_π V with d V = 0, d the stationary distribution."""
    chain, earned = _chain(transition, policy), _earned(transition, reward, policy)
    kept = _stationary(chain)
    fundamental = np.eye(len(chain)) - chain + np.outer(np.ones(len(chain)), kept)
    return np.linalg.solve(fundamental, earned - np.tensordot(kept, earned, 1))


def differential_q(transition: np.ndarray, reward: np.ndarray, policy: np.ndarray) -> np.ndarray:
    """Differential action values Q [M, S] (or [M, S, N]): Q(s, a) = r(s, a) - J + E V(s'). Source: Zhang et al. 2018."""
    value = differential_value(transition, reward, policy)
    return reward - average_reward(transition, reward, policy) + np.tensordot(transition, value, 1)


def optimum(transition: np.ndarray, reward: np.ndarray) -> Optimum:
    """The best policy of one who controls all agents, for a reward [M, S], by policy iteration (Puterman 1994, section 8.6).

    Agents that see the state and choose independently reach it, too: it is deterministic. Its Q is `differential_q` of the policy
    `np.eye(M)[action]`.
    """
    if np.shape(reward) != transition.shape[:2]:
        raise ValueError(
            f"reward has shape {np.shape(reward)}; expected {transition.shape[:2]}: joint actions, states; of private ones take the mean"
        )
    states = np.arange(transition.shape[1])
    action = np.asarray(reward).argmax(0)
    while True:
        # J + V(s) - Σ P(s, s') V(s') = r(s), with V(0) = 0: J takes the place of V(0) among the unknowns
        system = np.eye(len(states)) - transition[action, states]
        system[:, 0] = 1.0
        solution = np.linalg.solve(system, reward[action, states])
        average, value = float(solution[0]), np.concatenate([[0.0], solution[1:]])
        ahead = reward + transition @ value
        better = ahead.argmax(0)
        # a tie keeps the action, otherwise rounding could go around in circles
        gain = ahead[better, states] - ahead[action, states]
        if (gain <= 1e-10 * max(1.0, float(np.abs(ahead).max()))).all():
            return Optimum(average, action, value)
        action = np.where(gain > 0, better, action)


def _chain(transition: np.ndarray, policy: np.ndarray) -> np.ndarray:
    """Transition probabilities [S, S] under a policy."""
    _check(policy, transition)
    return np.einsum("sm,msz->sz", policy, transition)


def _earned(transition: np.ndarray, reward: np.ndarray, policy: np.ndarray) -> np.ndarray:
    """Mean rewards [S] or [S, N] under a policy."""
    _check(policy, transition)
    if np.shape(reward)[:2] != transition.shape[:2]:
        raise ValueError(
            f"reward has shape {np.shape(reward)}; expected {transition.shape[:2]} or with agents: joint actions, states"
        )
    return np.einsum("sm,ms...->s...", policy, reward)


def _check(policy: np.ndarray, transition: np.ndarray) -> None:
    if np.shape(policy) != transition.shape[1::-1]:
        raise ValueError(f"policy has shape {np.shape(policy)}; expected {transition.shape[1::-1]}: states, joint actions")


def _stationary(chain: np.ndarray) -> np.ndarray:
    n = len(chain)
    system = np.vstack([chain.T - np.eye(n), np.ones(n)])
    solution, _, rank, _ = np.linalg.lstsq(system, np.append(np.zeros(n), 1.0), rcond=None)
    if rank < n:
        raise ValueError("the policy's chain has several recurrent classes: its average reward depends on where it starts")
    return solution
