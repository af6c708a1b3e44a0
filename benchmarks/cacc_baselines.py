"""What do policies that learn nothing, or almost nothing, score in networked/cacc?

Constant actions, all four, and a linear policy that all vehicles share: 24 parameters, the action with the highest of four scores, each
linear in the vehicle's own five observations. It is tuned by the cross-entropy method (Rubinstein 1999) on a budget that the table
states, a few times from different seeds. What learns to communicate has to beat these. Scores are those of Chu et al. 2020: means over
steps of the sum over eight vehicles, on episodes that no tuning saw.

    python benchmarks/cacc_baselines.py [--episodes 400] [--iterations 40] [--population 64] [--tunings 3] [--output FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from marl_hpc import envs
from marl_hpc.evaluation import bootstrap_interval
from marl_hpc.summary import git_state, versions

SCENARIOS = ("catchup", "slowdown")
HELD_OUT = 10_000  # seeds of evaluation start here; tuning draws below 2³¹ by generators of its own
TUNED_ON, ELITE = 8, 1 / 8  # episodes of each candidate in an iteration; share of candidates that the next ones come from
Policy = Callable[[np.ndarray], np.ndarray]  # observations [B, N, 5] -> actions [B, N]


def play(env: Any, policy: Policy, seeds: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """(score, whether it crashed) of an episode of each seed, one in each copy."""
    env.reset(list(range(env.copies)), seeds)
    total, steps, over = np.zeros(env.copies), np.zeros(env.copies), np.zeros(env.copies, bool)
    seen = env.observe()
    while not over.all():
        steps += ~over
        step = env.step({"shared": policy(seen.observation["shared"])})
        total += step.reward["shared"].sum(1)
        seen, over = step.seen, step.over
    return total / steps, env.crashed.copy()


def linear(parameters: np.ndarray) -> Policy:
    """Policies by parameters [24] for all copies, or [B, 24]."""
    weights = parameters.reshape(-1, 4, 6)

    def act(observation: np.ndarray) -> np.ndarray:
        return (observation @ weights[..., :5].swapaxes(1, 2) + weights[:, None, :, 5]).argmax(-1)

    return act


def tune(scenario: str, seed: int, iterations: int, population: int, **options: Any) -> np.ndarray:
    """Parameters [24]: the mean of the last elite."""
    random = np.random.default_rng(seed)
    env = envs.make("networked/cacc", scenario=scenario, copies=population * TUNED_ON, **options)
    mean, spread = np.zeros(24), np.ones(24)
    for iteration in range(iterations):
        candidates = mean + spread * random.normal(size=(population, 24))
        seeds = random.integers(HELD_OUT + 10**6, 2**31, TUNED_ON).tolist()  # the same for all candidates
        scores, _ = play(env, linear(np.repeat(candidates, TUNED_ON, 0)), seeds * population)
        order = np.argsort(scores.reshape(population, TUNED_ON).mean(1))
        best = candidates[order[-max(2, round(ELITE * population)) :]]
        # some spread is put back, less and less, so that it doesn't settle early (Szita & Lorincz 2006)
        mean, spread = best.mean(0), np.sqrt(best.var(0) + 0.1 * (1 - iteration / iterations) ** 2)
    return mean


def evaluate(scenario: str, policy: Policy, episodes: int, **options: Any) -> dict[str, Any]:
    env = envs.make("networked/cacc", scenario=scenario, copies=episodes, **options)
    scores, crashed = play(env, policy, list(range(HELD_OUT, HELD_OUT + episodes)))
    low, high = bootstrap_interval(scores, lambda drawn: drawn.mean(-1))
    return {
        "mean": float(scores.mean()),
        "interval": [low, high],
        "std": float(scores.std(ddof=1)),
        "crashed": float(crashed.mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=400, help="of each evaluation")
    parser.add_argument("--iterations", type=int, default=40)
    parser.add_argument("--population", type=int, default=64)
    parser.add_argument("--tunings", type=int, default=3, help="linear policies, each from a seed of its own")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "cacc_baselines.json")
    arguments = parser.parse_args()
    results: dict[str, dict[str, Any]] = {scenario: {} for scenario in SCENARIOS}
    for scenario, found in results.items():
        for action in range(4):
            found[f"constant action {action}"] = evaluate(
                scenario, lambda seen, action=action: np.full(seen.shape[:2], action), arguments.episodes
            )
        for seed in range(arguments.tunings):
            began = time.process_time()
            parameters = tune(scenario, seed, arguments.iterations, arguments.population)
            spent = {"cpu_s": time.process_time() - began, "parameters": parameters.tolist()}
            found[f"linear, tuned from seed {seed}"] = evaluate(scenario, linear(parameters), arguments.episodes) | spent
    budget = arguments.iterations * arguments.population * TUNED_ON
    seconds = [row["cpu_s"] for found in results.values() for row in found.values() if "cpu_s" in row]
    if seconds:
        print(f"Linear policies: {budget:,} episodes of up to 600 steps, {min(seconds):.0f} to {max(seconds):.0f} CPU-s each.\n")
    print("| policy | " + " | ".join(f"{s}: score [95 % interval] | crashed" for s in SCENARIOS) + " |\n" + "|---" * 5 + "|")
    for name in results[SCENARIOS[0]]:
        cells = []
        for row in (results[scenario][name] for scenario in SCENARIOS):
            low, high = row["interval"]
            cells.append(f"{row['mean']:.1f} [{low:.1f}, {high:.1f}] | {row['crashed']:.0%}")
        print(f"| {name} | {' | '.join(cells)} |")
    record = {
        "question": (__doc__ or "").splitlines()[0], "environment": envs.make("networked/cacc").spec.version, "vehicles": 8,
        "score": "mean over steps of the sum over vehicles", "episodes": arguments.episodes, "first_seed": HELD_OUT,
        "tuning": {"episodes": budget, "iterations": arguments.iterations, "population": arguments.population},
        "cores": os.cpu_count(), "git": git_state(), "versions": versions(), "results": results,
    }  # fmt: skip
    arguments.output.parent.mkdir(exist_ok=True)
    arguments.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
