"""A sequential game as flat arrays: its histories sorted by depth, its information states, and its players' sequences.

A *sequence* of a player is what it has done so far, named by its last information state and action; number 0 is having done nothing.
With perfect recall a history says one sequence for each player, and the probability of the history is a product over players and
chance of one number each (von Stengel 1996). So passes go over sequences, stage by stage, and never over histories one by one.
Letters: H histories, Z terminal ones, I information states of a player, A actions, S sequences of a player. Pure NumPy.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

CHANCE, TERMINAL = -1, -4  # as in OpenSpiel
ZERO_SUM_TOLERANCE = 1e-9  # by how much the sum of all returns may vary, as a share of the largest


class Stage(NamedTuple):
    """Information states of one player that come after equally many moves of its own, and the sequences that they lead to."""

    states: slice
    sequences: slice
    state: np.ndarray  # [sequences]: of each sequence its information state
    action: np.ndarray  # [sequences]
    before: np.ndarray  # [sequences]: the sequence before it
    state_before: np.ndarray  # [states]: the sequence before each information state


@dataclass(frozen=True, kw_only=True, eq=False)
class Game:
    """A game of `players` players; `build` makes it. Histories are sorted by depth, the root first, children of one side by side.

    Information states are numbered for each player from 0, sorted by how often it has moved before; a behavior policy of player i is
    [I_i, A] probabilities of actions, 0 where one isn't legal.
    """

    name: str
    players: int
    actions: int  # A: how many different actions players have in the whole game
    # by history
    player: np.ndarray  # [H] who moves; CHANCE or TERMINAL
    parent: np.ndarray  # [H]; -1 for the root
    move: np.ndarray  # [H] the action or the outcome of chance that led here; -1 for the root
    probability: np.ndarray  # [H] of that outcome; 1 where a player moved
    child: np.ndarray  # [H, A]; -1 where an action isn't legal, and everywhere unless a player moves
    state: np.ndarray  # [H] the mover's information state; -1 unless a player moves
    returns: np.ndarray  # [H, players] up to here; 0 where chance moves
    sequence: np.ndarray  # [H, players]: what each player has done so far
    chance: np.ndarray  # [H] product of the probabilities of all outcomes of chance up to here
    draws: np.ndarray  # [H] how often chance has moved up to here
    levels: np.ndarray  # [depths + 1]: histories of depth d are levels[d] … levels[d + 1]
    terminal: np.ndarray  # [Z] the terminal histories
    # by player
    state_names: tuple[tuple[str, ...], ...]
    legal: tuple[np.ndarray, ...]  # [I, A]
    stages: tuple[tuple[Stage, ...], ...]
    # what players see, where the game was compiled with it
    seen: np.ndarray | None = None  # [H, players] rows of `views`
    views: np.ndarray | None = None  # [different views, size] float32

    @property
    def zero_sum(self) -> bool:
        """Whether all players' returns sum to the same constant, however the game ends."""
        last = self.returns[self.terminal]
        return bool(np.ptp(last.sum(1)) <= ZERO_SUM_TOLERANCE * np.abs(last).max())

    def states(self, player: int) -> int:
        """I: how many information states a player has."""
        return len(self.state_names[player])

    def sequences(self, player: int) -> int:
        """S: how many sequences a player has, the empty one included."""
        return self.stages[player][-1].sequences.stop if self.stages[player] else 1


class History(NamedTuple):
    """One history as a compiler finds it. Fields as in `Game`, except that `parent` counts in the order in which they were found."""

    parent: int
    move: int
    probability: float
    player: int
    state: str  # the name of the mover's information state
    legal: Sequence[int]
    returns: Sequence[float]


def build(name: str, players: int, actions: int, histories: Sequence[History]) -> tuple[Game, np.ndarray]:
    """(the game, the order [H] of the given histories in it) from histories in depth-first order, the root first.

    Raises ValueError where an information state hasn't the same legal actions everywhere, or where a player would forget what it
    did: with imperfect recall best responses aren't local.
    """
    count = len(histories)
    found_parent = np.array([h.parent for h in histories])
    depth = np.zeros(count, int)
    for i in range(1, count):
        depth[i] = depth[found_parent[i]] + 1
    order = np.argsort(depth, kind="stable")  # stable: children of one history stay side by side
    place = np.empty(count, np.int32)
    place[order] = np.arange(count)
    ordered = [histories[i] for i in order]
    parent = np.where(found_parent[order] < 0, -1, place[found_parent[order]]).astype(np.int32)
    player = np.array([h.player for h in ordered], np.int8)
    move = np.array([h.move for h in ordered], np.int32)
    probability = np.array([h.probability for h in ordered], float)
    levels = np.searchsorted(depth[order], np.arange(depth.max() + 2))
    child = np.full((count, actions), -1, np.int32)
    moved = np.flatnonzero(parent >= 0)
    by_player = moved[player[parent[moved]] >= 0]
    child[parent[by_player], move[by_player]] = by_player

    state, names, legal = _information_states(ordered, players, actions, parent, player, levels)
    for own in range(players):
        mine = np.flatnonzero(player == own)
        different = mine[((child[mine] >= 0) != legal[own][state[mine]]).any(1)]
        if len(different):
            raise ValueError(
                f"{name}: information state {ordered[int(different[0])].state!r} of player {own} has different legal actions in "
                "different histories; a policy couldn't be defined over it"
            )
    sequence_of = [np.cumsum(allowed, dtype=np.int32).reshape(allowed.shape) for allowed in legal]  # counts legal pairs from 1
    sequence = np.zeros((count, players), np.int32)
    chance, draws = np.ones(count), np.zeros(count, np.int32)
    for start, end in itertools.pairwise(levels[1:]):
        here = np.arange(start, end)
        above = parent[here]
        sequence[here] = sequence[above]
        chance[here] = chance[above] * probability[here]
        draws[here] = draws[above] + (player[above] == CHANCE)
        for own in range(players):
            mine = here[player[above] == own]
            sequence[mine, own] = sequence_of[own][state[parent[mine]], move[mine]]
    stages = [
        _stages(name, own, names[own], legal[own], state[player == own], sequence[player == own, own]) for own in range(players)
    ]
    game = Game(
        name=name, players=players, actions=actions, player=player, parent=parent, move=move, probability=probability, child=child,
        state=state, returns=np.array([h.returns for h in ordered], float), sequence=sequence, chance=chance, draws=draws,
        levels=levels, terminal=np.flatnonzero(player == TERMINAL), state_names=names, legal=legal, stages=tuple(stages),
    )  # fmt: skip
    return game, order


def _information_states(
    histories: Sequence[History], players: int, actions: int, parent: np.ndarray, player: np.ndarray, levels: np.ndarray
) -> tuple[np.ndarray, tuple[tuple[str, ...], ...], tuple[np.ndarray, ...]]:
    """(of each history its mover's information state [H], their names, their legal actions [I, A] by player)."""
    moves = np.zeros((len(histories), players), np.int32)  # of each player, up to a history
    for start, end in itertools.pairwise(levels[1:]):
        above = parent[start:end]
        moves[start:end] = moves[above] + (player[above, None] == np.arange(players))
    state = np.full(len(histories), -1, np.int32)
    names, legal = [], []
    for own in range(players):
        mine = np.flatnonzero(player == own)
        first: dict[str, int] = {}
        for h in mine.tolist():
            first.setdefault(histories[h].state, h)
        ranked = sorted(first, key=lambda key: moves[first[key], own])  # stable, otherwise as they appear
        number = {key: i for i, key in enumerate(ranked)}
        state[mine] = [number[histories[h].state] for h in mine.tolist()]
        allowed = np.zeros((len(ranked), actions), bool)
        for i, key in enumerate(ranked):
            allowed[i, list(histories[first[key]].legal)] = True
        names.append(tuple(ranked))
        legal.append(allowed)
    return state, tuple(names), tuple(legal)


def _stages(
    name: str, own: int, names: Sequence[str], legal: np.ndarray, state: np.ndarray, sequence: np.ndarray
) -> tuple[Stage, ...]:
    """A player's stages, from the information states and sequences of the histories in which it moves."""
    before = np.zeros(len(names), np.int32)
    before[state] = sequence
    forgot = np.flatnonzero(before[state] != sequence)
    if len(forgot):
        raise ValueError(
            f"{name}: player {own} doesn't remember its own moves in information state {names[int(state[forgot[0]])]!r}; compiled games "
            "need perfect recall"
        )
    owner, action = np.nonzero(legal)  # of sequences 1, 2, …
    length = np.full(1 + len(owner), -1)  # of a sequence, in moves; -1 while it isn't known
    length[0] = 0
    stages = []
    start = 0
    while start < len(names):
        # states are sorted by how many moves come before: the next stage ends where that isn't the same, or not known yet
        here = length[before[start:]]
        end = start + int(np.argmax(np.append(here != here[0], True)))
        low, high = np.searchsorted(owner, [start, end])
        length[1 + low : 1 + high] = here[0] + 1
        state_of = owner[low:high]
        sequences = slice(int(1 + low), int(1 + high))
        stages.append(Stage(slice(start, end), sequences, state_of, action[low:high], before[state_of], before[start:end]))
        start = end
    return tuple(stages)


def checked_player(game: Game, player: Any) -> int:
    """A player's number. Raises ValueError for one that isn't there."""
    if player not in range(game.players):
        raise ValueError(f"{game.name} has players 0 … {game.players - 1}, got {player!r}")
    return int(player)
