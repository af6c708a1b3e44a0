"""The perfect tic-tac-toe player of the benchmark: known positions, and it never loses."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

spec = importlib.util.spec_from_file_location("tictactoe_benchmark", Path(__file__).parents[2] / "benchmarks" / "tictactoe.py")
tictactoe = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tictactoe)


def test_the_empty_board_is_a_draw_whatever_the_first_move():
    assert tictactoe.value((0,) * 9, 1) == 0
    assert tictactoe.best_moves((0,) * 9, 1) == list(range(9))


@pytest.mark.parametrize(
    ("squares", "mover", "best"),
    [
        ("110220000", 1, [2]),  # win at once
        ("110020000", 2, [2]),  # block
        ("100000000", 2, [4]),  # only the center answers a corner
        ("000010000", 2, [0, 2, 6, 8]),  # only corners answer the center
        ("100020001", 2, [1, 3, 5, 7]),  # a corner would lose to a fork
    ],
)
def test_known_positions(squares, mover, best):
    assert tictactoe.best_moves(tuple(map(int, squares)), mover) == best


@pytest.mark.parametrize("seat", [1, 2])
def test_it_never_loses_to_a_random_player_and_often_wins(seat):
    random, ended = np.random.default_rng(seat), {1: 0, 0: 0, -1: 0}
    for _ in range(300):
        squares, mover = (0,) * 9, 1
        while tictactoe.value(squares, mover) >= -1 and 0 in squares:
            if any(squares[a] == squares[b] == squares[c] != 0 for a, b, c in tictactoe.LINES):
                break
            moves = tictactoe.best_moves(squares, mover) if mover == seat else [k for k in range(9) if squares[k] == 0]
            squares, mover = tictactoe.after(squares, int(random.choice(moves)), mover), 3 - mover
        winner = next((squares[a] for a, b, c in tictactoe.LINES if squares[a] == squares[b] == squares[c] != 0), 0)
        ended[0 if winner == 0 else 1 if winner == seat else -1] += 1
    assert ended[-1] == 0
    assert ended[1] > 200
