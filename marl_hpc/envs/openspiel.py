"""OpenSpiel's games, straight over `pyspiel`: in each step one player of each copy moves, chance moves in between by the copy's seed.

Players see their information state, which holds all they know, or where a game has none the observation, which may forget. A game of
simultaneous moves is played through OpenSpiel's own conversion: one player after the other, who don't see each other's move.
Options are the game's own, for example players of kuhn_poker; `game` takes any of OpenSpiel's game strings.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

from marl_hpc.config import ConfigError
from marl_hpc.envs.batch import copy_seen, empty_seen, empty_step
from marl_hpc.envs.grouping import group_agents
from marl_hpc.envs.networked.hashing import uniform
from marl_hpc.types import EnvBatch, EnvSpec, Seen, Step

TASKS = (
    "kuhn_poker",
    "leduc_poker",
    "liars_dice",
    "tic_tac_toe",
    "connect_four",
    "goofspiel",
    "tiny_hanabi",
    "hanabi",
    "backgammon",
)


class Setting(NamedTuple):
    """A game as environments play it."""

    game: Any  # OpenSpiel's, one player moving at a time
    spec: EnvSpec
    places: tuple[tuple[str, int], ...]  # of each player: its group, and where in it
    look: Callable[[Any, int], Any]  # what a player sees of a state


def setting(name: str, game: Any, groups: str | Mapping[str, str], observation: str | None) -> Setting:
    """How a game is played here. Raises ConfigError for one that can't be, or that doesn't give the `observation`."""
    import pyspiel

    kind, player = game.get_type(), pyspiel.GameType.Dynamics
    if kind.dynamics == player.SIMULTANEOUS:
        game = pyspiel.convert_to_turn_based(game)
    elif kind.dynamics != player.SEQUENTIAL:
        raise ConfigError(f"env={name}: {game} is a mean-field game; expected one in which single players move")
    if kind.chance_mode == pyspiel.GameType.ChanceMode.SAMPLED_STOCHASTIC:
        raise ConfigError(
            f"env={name}: {game} draws its chance by itself, which no seed of ours reaches; use a game with explicit chance"
        )
    provided = {"information_state": kind.provides_information_state_tensor, "observation": kind.provides_observation_tensor}
    observation = observation or next((key for key, given in provided.items() if given), None)
    if observation is None or not provided.get(observation):
        known = [key for key, given in provided.items() if given]
        raise ConfigError(f"env={name}: observation={observation!r} isn't given by {game}; it gives: {', '.join(known) or 'none'}")
    tensor = f"{observation}_tensor"
    agents = [f"player_{i}" for i in range(game.num_players())]
    size = int(np.prod(getattr(game, f"{tensor}_shape")()))
    sees, does = spaces.Box(-np.inf, np.inf, (size,)), spaces.Discrete(game.num_distinct_actions())
    specs = group_agents(agents, dict.fromkeys(agents, sees), dict.fromkeys(agents, does), groups, masked=agents)
    spec = EnvSpec(
        name=name,
        version=f"open_spiel {importlib.metadata.version('open_spiel')} {game} {observation}",
        groups=specs,
        state_shape=(size * len(agents),),
        state_from="observations",
        turn_based=True,
    )
    place = {agent: (group.name, i) for group in specs for i, agent in enumerate(group.agents)}

    def look(state: Any, player: int) -> Any:
        try:
            return getattr(state, tensor)(player)
        except pyspiel.SpielError:  # some games give none once they have ended: nobody acts on it or bootstraps from it
            if not state.is_terminal():
                raise
            return np.zeros(size)

    return Setting(game, spec, tuple(place[agent] for agent in agents), look)


class OpenSpielBatch:
    """B copies of one game as a turn-based `EnvBatch`. Rewards are what each move, and the chance after it, adds to the returns."""

    def __init__(self, name: str, game: Any, copies: int, groups: str | Mapping[str, str], observation: str | None) -> None:
        self.setting = setting(name, game, groups, observation)
        self._game, self.spec, self._places, self._look = self.setting
        self.copies = copies
        self._states: list[Any] = [None] * copies
        self._seeds, self._draws = np.zeros(copies, np.int64), np.zeros(copies, np.int64)  # how often chance has moved
        self._current = empty_seen(self.spec.groups, copies)

    @property
    def constant_sum(self) -> bool:
        """Whether OpenSpiel knows that all players' returns sum to the same."""
        import pyspiel

        return self._game.get_type().utility in (pyspiel.GameType.Utility.ZERO_SUM, pyspiel.GameType.Utility.CONSTANT_SUM)

    def reset(self, copies: list[int], seeds: list[int]) -> None:
        for copy, seed in zip(copies, seeds, strict=True):
            self._seeds[copy], self._draws[copy] = seed, 0
            self._states[copy] = self._game.new_initial_state()
            self._chance(copy)
            self._write(copy)

    def observe(self) -> Seen:
        return copy_seen(self._current)

    def state(self) -> np.ndarray:
        return np.concatenate([self._current.observation[g.name].reshape(self.copies, -1) for g in self.spec.groups], 1)

    def step(self, actions: Mapping[str, np.ndarray]) -> Step:
        result = empty_step(self.spec.groups, self.copies)
        for copy, state in enumerate(self._states):
            if state is None or state.is_terminal():  # waits for its reset
                for array in self._current.observation.values():
                    array[copy] = 0
                result.over[copy] = True
                continue
            group, i = self._places[state.current_player()]
            before = state.returns()
            state.apply_action(int(actions[group][copy, i]))
            self._chance(copy)
            for (group, i), reward in zip(self._places, np.subtract(state.returns(), before), strict=True):
                result.reward[group][copy, i] = reward
                result.terminated[group][copy, i] = state.is_terminal()
            result.over[copy] = state.is_terminal()
            self._write(copy)
        return result._replace(seen=self.observe())

    def close(self) -> None:
        self._states = [None] * self.copies

    def _chance(self, copy: int) -> None:
        state = self._states[copy]
        while state.is_chance_node():
            outcomes, probabilities = zip(*state.chance_outcomes(), strict=True)
            edges, number = np.cumsum(probabilities), chance_number(self._seeds[copy], self._draws[copy])
            # by rounding the last edge may lie below the number
            state.apply_action(outcomes[min(int(np.searchsorted(edges, number, side="right")), len(outcomes) - 1)])
            self._draws[copy] += 1

    def _write(self, copy: int) -> None:
        state, (observation, mask, active) = self._states[copy], self._current
        mover = -1 if state.is_terminal() else state.current_player()
        for player, (group, i) in enumerate(self._places):
            observation[group][copy, i] = self._look(state, player)
            active[group][copy, i] = player == mover
            mask[group][copy, i] = True
            if player == mover:
                mask[group][copy, i] = state.legal_actions_mask(player)


def chance_number(seeds: Any, draws: Any) -> np.ndarray:
    """What chance's moves are drawn by, in [0, 1): a function of the episode's seed and of how often chance has moved in it before, whole
    arrays at once. Seeds are from 0 on."""
    return uniform(seeds, draws)


def load(name: str, game: str, parameters: Mapping[str, Any]) -> Any:
    """OpenSpiel's game object. Raises ConfigError when the package, the game or a parameter doesn't exist."""
    try:
        import pyspiel
    except ImportError as error:
        raise ConfigError(f"env={name} needs the package open_spiel ({error}); pip install 'marl_hpc[openspiel]'") from error
    try:
        return pyspiel.load_game(game, dict(parameters)) if parameters else pyspiel.load_game(game)
    except pyspiel.SpielError as error:
        raise ConfigError(f"env={name}: {error}") from error


def tasks(family: str, batch: Callable[..., EnvBatch], names: Sequence[str]) -> dict[str, Callable[..., EnvBatch]]:
    """The functions behind family/NAME for these games, and family/game, which takes any of OpenSpiel's game strings."""

    def task(game_name: str) -> Callable[..., EnvBatch]:
        def make(*, copies: int, groups: str | Mapping[str, str], observation: str | None = None, **parameters: Any) -> EnvBatch:
            name = f"{family}/{game_name}"
            return batch(name, load(name, game_name, parameters), copies, groups, observation)

        make.__name__ = make.__qualname__ = game_name
        make.__doc__ = f"OpenSpiel's {game_name}; its parameters are options."
        return make

    def game(*, game: str, copies: int, groups: str | Mapping[str, str], observation: str | None = None) -> EnvBatch:
        """Any game by OpenSpiel's own string, for example kuhn_poker(players=3)."""
        return batch(f"{family}/game", load(f"{family}/game", game, {}), copies, groups, observation)

    return {name: task(name) for name in names} | {"game": game}


globals().update(tasks("openspiel", OpenSpielBatch, TASKS))
