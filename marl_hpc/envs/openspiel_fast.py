"""OpenSpiel's smaller games, compiled: the same episodes as `openspiel/NAME` for the same seeds, stepped for all copies at once.

The whole game is written down when the first environment is made, once a process: 3 s and 250 MB for Liar's dice, twice
that for tic-tac-toe, next to nothing for the others. Options and observations are those of `openspiel`. May import the pure math row, types
and config, besides third-party packages.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from marl_hpc.config import ConfigError
from marl_hpc.envs.openspiel import OpenSpielBatch, Setting, chance_number, setting, tasks
from marl_hpc.games import Copies, Game, compile_game
from marl_hpc.types import EnvBatch, Seen, Step

TASKS = ("kuhn_poker", "leduc_poker", "liars_dice", "tic_tac_toe", "goofspiel", "tiny_hanabi")


class CompiledBatch:
    """B copies of one compiled game as a turn-based `EnvBatch`. Raises ConfigError for a game that can't be compiled."""

    def __init__(self, name: str, game: Any, copies: int, groups: str | Mapping[str, str], observation: str | None) -> None:
        if copies < 1:
            raise ConfigError(f"env={name}: copies={copies}; at least one copy is needed")
        played = setting(name, game, groups, observation)
        try:
            self.game = compiled(played)
        except ValueError as error:
            raise ConfigError(f"env={name}: {error}; openspiel/{name.partition('/')[2]} plays it as it is") from error
        self.spec = played.spec
        self.copies = copies
        players: dict[str, list[int]] = {group.name: [0] * len(group.agents) for group in played.spec.groups}
        for player, (group, place) in enumerate(played.places):
            players[group][place] = player
        self._players = {group: np.array(rows) for group, rows in players.items()}  # by place in the group
        self._play = Copies(self.game, copies)
        self._shown = np.zeros(copies, bool)  # has something to show: playing, or just over

    def reset(self, copies: list[int], seeds: list[int]) -> None:
        if len(copies) != len(seeds):
            raise ValueError(f"reset of {len(copies)} copies got {len(seeds)} seeds; give one for each")
        places = np.asarray(copies, np.int64)
        self._play.reset(places, chance_number(np.array(seeds, np.int64).reshape(-1, 1), np.arange(self._play.draws)))
        self._shown[places] = True

    def observe(self) -> Seen:
        play, game = self._play, self.game
        assert game.views is not None
        assert game.seen is not None
        seen, mover, legal = game.seen[play.at], play.player, play.legal
        observation, mask, active = {}, {}, {}
        for group, players in self._players.items():
            observation[group] = game.views[seen[:, players]]
            observation[group][~self._shown] = 0
            active[group] = mover[:, None] == players
            mask[group] = legal[:, None] | ~active[group][..., None]
        return Seen(observation, mask, active)

    def state(self) -> np.ndarray:
        return np.concatenate([array.reshape(self.copies, -1) for array in self.observe().observation.values()], 1)

    def step(self, actions: Mapping[str, np.ndarray]) -> Step:
        play = self._play
        before, playing = play.returns, ~play.over
        chosen = np.zeros(self.copies, int)
        for group, players in self._players.items():
            given = np.asarray(actions[group])
            if given.shape != (self.copies, len(players)):
                raise ValueError(f"actions of group {group!r} have shape {given.shape}; expected {(self.copies, len(players))}")
            copy, place = np.nonzero(play.player[:, None] == players)
            chosen[copy] = given[copy, place]
        play.step(chosen)
        self._shown = playing
        gained, over = play.returns - before, play.over
        ends = over & playing
        return Step(
            self.observe(),
            {group: gained[:, players] for group, players in self._players.items()},
            {group: np.repeat(ends[:, None], len(players), 1) for group, players in self._players.items()},
            {group: np.zeros((self.copies, len(players)), bool) for group, players in self._players.items()},
            over,
        )

    def close(self) -> None:
        pass


def whole_game(env: EnvBatch) -> Game | None:
    """An environment's game written down whole, with what players see; None where it isn't one of OpenSpiel's. Raises ConfigError for
    one that is too large, or that players don't recall perfectly."""
    if isinstance(env, CompiledBatch):
        return env.game
    if not isinstance(env, OpenSpielBatch):
        return None
    try:
        return compiled(env.setting)
    except ValueError as error:
        raise ConfigError(f"env={env.spec.name}: {error}") from error


_COMPILED: dict[str, Game] = {}  # by version, which says the game and what is seen of it


def compiled(played: Setting) -> Game:
    """The game with what players see, compiled when it is asked for the first time. Raises ValueError as `compile_game` does."""
    if played.spec.version not in _COMPILED:
        _COMPILED[played.spec.version] = compile_game(played.game, look=played.look)
    return _COMPILED[played.spec.version]


globals().update(tasks("openspiel_fast", CompiledBatch, TASKS))
