"""From OpenSpiel's games to arrays, and policies to and from OpenSpiel's own form. The only place here that imports `pyspiel`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from marl_hpc.games.policies import checked_policy
from marl_hpc.games.tree import CHANCE, TERMINAL, Game, History, build

PROBES, MARGIN = 400, 3  # see `surely_larger`


def compile_game(game: Any, *, look: Callable[[Any, int], Sequence[float]] | None = None, max_histories: int = 1_000_000) -> Game:
    """A sequential OpenSpiel game, or its string, as arrays: every history is visited once, some 100,000 a second.

    `look(state, player)` gives what a player sees of an OpenSpiel state, kept in `seen` and `views` where it is given. A game of
    simultaneous moves is converted by OpenSpiel to one move after the other. Raises ImportError, with the line that installs it,
    without `pyspiel`, and ValueError for a game that doesn't exist, has more histories than `max_histories`, draws its chance by
    itself, names no information states, or in which players forget their own moves.

    >>> game = compile_game("kuhn_poker")
    >>> len(game.player), game.state_names[0]
    (58, ('0', '1', '2', '0pb', '1pb', '2pb'))
    """
    game = turn_based(game)
    kind = game.get_type()
    if not kind.provides_information_state_string:
        raise ValueError(f"{game} names no information states, which is what policies of a compiled game are over")
    too_large = f"{game} has more than max_histories={max_histories} histories; it is too large to be written down"
    if surely_larger(game, max_histories):
        raise ValueError(too_large)
    histories: list[History] = []
    rows: dict[bytes, int] = {}
    seen: list[list[int]] = []
    stack = [(game.new_initial_state(), -1, -1, 1.0)]
    while stack:
        state, parent, move, probability = stack.pop()
        here = len(histories)
        if here == max_histories:
            raise ValueError(too_large)
        name, legal, player = "", [], TERMINAL if state.is_terminal() else state.current_player()
        if player == CHANCE:
            stack += [(state.child(outcome), here, outcome, chance) for outcome, chance in reversed(state.chance_outcomes())]
        elif player != TERMINAL:
            name, legal = state.information_state_string(player), state.legal_actions()
            stack += [(state.child(action), here, action, 1.0) for action in reversed(legal)]
        returns = [0.0] * game.num_players() if player == CHANCE else state.returns()
        histories.append(History(parent, move, probability, player, name, legal, returns))
        if look is not None:
            seen.append(
                [rows.setdefault(np.asarray(look(state, i), np.float32).tobytes(), len(rows)) for i in range(game.num_players())]
            )
    built, order = build(str(game), game.num_players(), game.num_distinct_actions(), histories)
    if look is None:
        return built
    views = np.stack([np.frombuffer(row, np.float32) for row in rows])
    return replace(built, seen=np.array(seen, np.int32)[order], views=views)


def surely_larger(game: Any, histories: int) -> bool:
    """Whether a game of OpenSpiel's has more histories than so many, found out in milliseconds; False says nothing.

    From random descents: what each has passed, every level times the branching above it, is on average the number of histories (Knuth
    1975). So at most one in MARGIN comes to MARGIN times that number (Markov's inequality), and half of PROBES do with a probability below
    1e-9 (Hoeffding's). All ranks draw the same descents.
    """
    random, larger = np.random.default_rng(0), 0
    for _ in range(PROBES):
        state, total, width = game.new_initial_state(), 1, 1
        while not state.is_terminal() and total <= MARGIN * histories:
            legal = state.legal_actions()
            width *= len(legal)
            total += width
            state.apply_action(legal[random.integers(len(legal))])
        larger += total > MARGIN * histories
    return 2 * larger > PROBES


def turn_based(game: Any) -> Any:
    """OpenSpiel's game object in which one player moves at a time, from such an object or a string. Raises as `compile_game` does."""
    try:
        import pyspiel
    except ImportError as error:
        raise ImportError(f"games are compiled from OpenSpiel's ({error}); pip install 'marl_hpc[openspiel]'") from error
    if isinstance(game, str):
        try:
            game = pyspiel.load_game(game)
        except pyspiel.SpielError as error:
            raise ValueError(f"OpenSpiel has no game {game!r}: {str(error).splitlines()[0]}") from error
    kind, dynamics = game.get_type(), pyspiel.GameType.Dynamics
    if kind.chance_mode == pyspiel.GameType.ChanceMode.SAMPLED_STOCHASTIC:
        raise ValueError(f"{game} draws its chance by itself, which no seed of ours reaches; use a game with explicit chance")
    if kind.dynamics == dynamics.SIMULTANEOUS:
        return pyspiel.convert_to_turn_based(game)
    if kind.dynamics != dynamics.SEQUENTIAL:
        raise ValueError(f"{game} is a mean-field game; expected one in which single players move")
    return game


def to_openspiel(game: Game, policies: Sequence[np.ndarray]) -> dict[str, list[list[float]]]:
    """One behavior policy per player as {information state string: [[action, probability], …]}, legal actions only.

    It is ready for JSON, and `pyspiel.TabularPolicy` takes it as it is. Raises ValueError for policies that aren't, and for
    a game in which two players name their information states alike.
    """
    if len(policies) != game.players:
        raise ValueError(f"{game.name} has {game.players} players, got {len(policies)} policies; give one for each")
    table: dict[str, list[list[float]]] = {}
    for player, policy in enumerate(policies):
        given = checked_policy(game, player, policy)
        for name, legal, chances in zip(game.state_names[player], game.legal[player], given, strict=True):
            if name in table:
                raise ValueError(
                    f"{game.name}: two players have an information state {name!r}; OpenSpiel's form can't tell them apart"
                )
            table[name] = [[int(action), float(chances[action])] for action in np.flatnonzero(legal)]
    return table


def from_openspiel(game: Game, table: Mapping[str, Sequence[Sequence[float]]]) -> list[np.ndarray]:
    """One behavior policy [I, A] per player, from what `to_openspiel` gives. Actions left out have probability 0.

    Raises ValueError for information states that are missing or unknown and for what isn't a policy.
    """
    known = {name for names in game.state_names for name in names}
    missing, unknown = known - table.keys(), table.keys() - known
    if missing or unknown:
        raise ValueError(
            f"{game.name} has {len(known)} information states; the table lacks {len(missing)} {sorted(missing)[:3]} and has "
            f"{len(unknown)} others {sorted(unknown)[:3]}; is it of another game?"
        )
    policies = []
    for player, names in enumerate(game.state_names):
        policy = np.zeros((len(names), game.actions))
        for row, name in zip(policy, names, strict=True):
            for action, probability in table[name]:
                if action not in range(game.actions):
                    raise ValueError(
                        f"{game.name}: information state {name!r} has action {action}; expected 0 … {game.actions - 1}"
                    )
                row[int(action)] = probability
        policies.append(checked_policy(game, player, policy))
    return policies
