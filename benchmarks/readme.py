"""Writes the measured numbers from benchmarks/results/ into the README, between its markers, and tables of all of them into
benchmarks/RESULTS.md; a number there is never typed.

python benchmarks/readme.py
"""

from __future__ import annotations

import json
import math
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from headlines import headlines

from marl_hpc.evaluation import bootstrap_interval, interquartile_mean, probability_of_improvement

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def tables() -> str:
    quickstart, throughput = (json.loads((RESULTS / f"{name}.json").read_text()) for name in ("quickstart", "throughput"))
    first = quickstart["runs"][0]
    lines = [
        f"`python benchmarks/quickstart.py`: {first['environment']['version']}, 3 agents, return as {first['evaluate']['return_scale']}, "
        f"{quickstart['cores']} cores, commit {quickstart['git']['commit'][:8]}.",
        "",
        "| policy | return, mean | IQM [95 % interval] | episodes | environment steps | seconds with start-up |",
        "|---|---|---|---|---|---|",
    ]
    rows = [("random", quickstart["random"], 0, 0)]
    rows += [(f"quickstart, seed {r['seed']}", r["evaluate"], r["env_steps"], r["command_s"]) for r in quickstart["runs"]]
    for name, e, steps, seconds in rows:
        low, high = e["interval"]
        spent = f"{steps:,} | {seconds:.0f}" if steps else "– | –"
        lines.append(f"| {name} | {e['return_mean']:.2f} | {e['iqm']:.2f} [{low:.2f}, {high:.2f}] | {e['episodes']} | {spent} |")
    lines += [
        "",
        f"`python benchmarks/throughput.py`: whole training beside the bare environment loop, {throughput['cores']} cores, median of "
        f"{throughput['repeats']} (range), commit {throughput['git']['commit'][:8]}.",
        "",
        "| layout | environment steps per second | of the bare loop | per CPU-second | of the bare loop |",
        "|---|---|---|---|---|",
    ]
    bare = throughput["table"]["bare environment loop"]
    for name, row in throughput["table"].items():
        low, high = row["env_steps_per_s_range"]
        lines.append(
            f"| {name} | {row['env_steps_per_s']:,.0f} ({low:,.0f}–{high:,.0f}) | {row['env_steps_per_s'] / bare['env_steps_per_s']:.2f} "
            f"| {row['env_steps_per_cpu_s']:,.0f} | {row['env_steps_per_cpu_s'] / bare['env_steps_per_cpu_s']:.2f} |"
        )
    return "\n".join(
        [
            *lines,
            *matrix_games(),
            *learning(),
            *foraging(),
            *spread(),
            *improvement(),
            *tictactoe(),
            *double_oracle(),
            *compiled_games(),
            *learned_populations(),
            *payoff_workers(),
            *straggler(),
            *samples(),
            *shards(),
            *neighbors(),
            *random_mdp(),
            *cue(),
            *wireless(),
            *platoons(),
            *many_agents(),
        ]
    )


MATRIX = {
    "climbing": "climbing (best 275, usual trap 175, safe 125)",
    "penalty0": "penalty, k = 0 (best 250)",
    "penalty": "penalty, k = -100 (best 250, safe 50)",
    "two_step": "two-step game, exploring uniformly throughout (best 8, safe 7)",
}
GAMES = {
    "memory": "memory task, cue 20 steps earlier (best 1)",
    "foraging": "Foraging-8x8-2p-2f-coop-v3, mean over its two agents (best 0.5)",
    "spread": "mpe2 simple_spread_v3, 3 agents",
    "speaker_listener": "mpe2 simple_speaker_listener_v4",
}


def matrix_games() -> list[str]:
    """Greedy returns by seed, an algorithm a row."""
    found = {suite: {name: finished(entry) for name, entry in entries(suite).items()} for suite in MATRIX}
    names = sorted({name for runs in found.values() for name in runs})
    if not names:
        return []
    runs = [run for suite in found.values() for done in suite.values() for run in done]
    most = max(run["env_steps"] for run in runs)
    commits = ", ".join(sorted({run["git"]["commit"][:8] for run in runs}))
    return [
        "",
        "`python benchmarks/learning.py climbing penalty0 penalty two_step`: matrix games, 25 repeats where not said otherwise: the final",
        f"policies' greedy return per agent by seed, after at most {most:,} environment steps. Each run is `marl-hpc",
        f"experiment=climbing/mappo seed=0` and so on; commits {commits}.",
        "",
        "| algorithm | " + " | ".join(MATRIX.values()) + " |",
        "|---" * (len(MATRIX) + 1) + "|",
        *(
            f"| {name} | "
            + " | ".join(counted([r["greedy"]["return_mean"] for r in found[suite].get(name, [])]) for suite in MATRIX)
            + " |"
            for name in names
        ),
    ]


def counted(values: list[float]) -> str:
    """Each value, and how often it came where more than once in a row."""
    groups = [(f"{round(value, 2):g}", len(list(same))) for value, same in groupby(values)]
    return ", ".join(text if count == 1 else f"{text} × {count}" for text, count in groups) or "–"


def learning() -> list[str]:
    """One table of what `benchmarks/learning.py` has run beside matrix games."""
    lines = [
        "",
        "`python benchmarks/learning.py`: final policies' return, mean over agents, sum over steps, on the original environments; each run is",
        "`marl-hpc experiment=GAME/ALGORITHM seed=S`. By seed where there are up to five, else IQM [95 % interval].",
        "",
        "| game | algorithm | greedy | sampled | best evaluation | environment steps | commit |",
        "|---|---|---|---|---|---|---|",
    ]
    head = len(lines)
    for suite, title in GAMES.items():
        for name, entry in entries(suite).items():
            done = finished(entry)
            going = len(entry["runs"]) - len(done)
            steps = (
                ", ".join(f"{n:,}" for n in sorted({r["env_steps"] for r in done}))
                if len(done) <= 5
                else f"{done[0]['env_steps']:,}"
            )
            returns = [several([r[way]["return_mean"] for r in done]) for way in ("greedy", "sampled")]
            best = several([max(value for _, value in r["curve"]) for r in done])
            commits = ", ".join(sorted({r["git"]["commit"][:8] for r in done}))
            note = f"; {going} of {len(entry['runs'])} runs not finished" if going else ""
            lines.append(f"| {title} | {name} | {returns[0]} | {returns[1]} | {best} | {steps}{note} | {commits} |")
    return lines if len(lines) > head else []


REACHED = 0.475  # of 0.5: 0.95 as the sum over both agents


def foraging() -> list[str]:
    """When evaluations first reached 95 % of what can be had."""
    rows = []
    for name, entry in entries("foraging").items():
        steps = [next((at for at, value in r["curve"] if value >= REACHED), None) for r in finished(entry)]
        rows.append(f"{name} after " + ", ".join("never" if at is None else f"{at:,}" for at in steps))
    if not rows:
        return []
    return [
        "",
        f"Foraging: evaluations (greedy, 400 episodes on the port) first reach {REACHED} of 0.5, by seed: {'; '.join(rows)} environment steps.",
    ]


def spread() -> list[str]:
    """simple_spread on both scales."""
    rows = []
    for name, entry in entries("spread").items():
        if done := finished(entry):
            cells = []
            for values in (
                [r["greedy"]["return_mean"] for r in done],
                [r["sampled"]["return_mean"] for r in done],
                [max(value for _, value in r["curve"]) for r in done],
                [r["curve"][-1][1] for r in done],
            ):
                iqm = float(interquartile_mean(values))
                cells.append(f"{iqm:.2f} ({6 * iqm - 75:.0f})")
            rows.append(f"| {name} | {done[0]['env_steps']:,} | {len(done)} | " + " | ".join(cells) + " |")
    if not rows:
        return []
    return [
        "",
        "simple_spread_v3, IQM over seeds, 100 episodes each: the mean over agents with mpe2's default reward, and in brackets the scale of",
        "Papoudakis et al. (2021), per agent, which is 6 × the first - 75 (three times the shared term, every contact, and a constant 75).",
        "",
        "| algorithm | environment steps | seeds | last, greedy | last, sampled | best evaluation in training, on the port | last evaluation, on the port |",
        "|---|---|---|---|---|---|---|",
        *rows,
    ]


def improvement() -> list[str]:
    """How likely a run of MAPPO has the better evaluation curve than one of IPPO on simple_speaker_listener."""
    found = {name: finished(entry) for name, entry in entries("speaker_listener").items()}
    if not (found.get("mappo") and found.get("ippo")):
        return []
    areas = {name: [area(r["curve"]) for r in runs] for name, runs in found.items()}
    chance, low, high = probability_of_improvement(areas["mappo"], areas["ippo"])
    return [
        "",
        f"simple_speaker_listener_v4: a run of MAPPO has a larger area under its evaluation curve than one of IPPO with probability {chance:.2f}",
        f"[{low:.2f}, {high:.2f}] ({len(found['mappo'])} and {len(found['ippo'])} seeds, {found['mappo'][0]['env_steps']:,} environment steps; "
        f"mean evaluation {np.mean(areas['mappo']):.1f} and {np.mean(areas['ippo']):.1f}).",
    ]


def area(curve: list[list[float]]) -> float:
    """Mean height of an evaluation curve, by the trapezoid rule."""
    steps, values = np.array(curve).T
    return float(np.trapezoid(values, steps) / (steps[-1] - steps[0]))


SEATS = ("first", "second")


def tictactoe() -> list[str]:
    record = recorded("tictactoe")
    if record is None:
        return []
    games = {
        key: key if "," in key else f"{key}, random" for run in record["runs"] for key in run if key.partition(",")[0] in SEATS
    }
    opponents = " and ".join(f"a {name}" for name in dict.fromkeys(title.partition(", ")[2] for title in games.values()))
    lines = [
        "",
        f"`python benchmarks/tictactoe.py`: PettingZoo's tictactoe_v3 after self-play (`experiment=tictactoe/ppo`), greedy against {opponents} player.",
        "",
        "| seed | seat, opponent | games | wins | draws | losses | illegal actions | environment steps | commit |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for run in record["runs"]:
        for seat in [key for key in run if key in games]:
            row = run[seat]
            shares = " | ".join(f"{100 * row[key]:.2f} %" for key in ("wins", "draws", "losses"))
            lines.append(
                f"| {run['seed']} | {games[seat]} | {row['games']:,} | {shares} | {row['illegal']} | {run['env_steps']:,} | {run['git']['commit'][:8]} |"
            )
    return lines


def double_oracle() -> list[str]:
    record = recorded("psro_exact")
    if record is None:
        return []
    seeds = {run["seed"] for run in record["runs"]}
    return [
        "",
        "`python benchmarks/psro_exact.py`: PSRO with exact best responses from uniform policies, CPU-seconds until NashConv (sum over players, "
        f"checked by OpenSpiel) was first so low, median (range) of {len(seeds)} runs, and at which iteration; one core, commit "
        f"{record['git']['commit'][:8]}.",
        "",
        *record["table"].splitlines(),
    ]


def compiled_games() -> list[str]:
    record = recorded("compiled_games")
    if record is None:
        return []
    rows = record["steps_per_cpu_s"]
    sides = next(iter(rows.values()))
    titles = {"compiled": "the game alone", "environment": "`openspiel_fast` environment", "openspiel": "OpenSpiel"}
    columns = [titles.get(side) or side.replace("environment", titles["environment"]) for side in sides]

    def cell(rates: list[float]) -> str:
        return f"{np.median(rates):,.0f} ({min(rates):,.0f} … {max(rates):,.0f})"

    return [
        "",
        f"`python benchmarks/compiled_games.py`: steps a CPU-second of {record['copies']:,} copies of compiled games where not said otherwise, beside "
        f"OpenSpiel's states stepped from Python; random legal actions, median of {record['repeats']} (range), mean returns checked against the "
        f"uniform policy's exact ones; commit {record['git']['commit'][:8]}.",
        "",
        f"| game | {' | '.join(columns)} |",
        f"|---|{'---|' * len(columns)}",
        *(f"| {name} | {' | '.join(map(cell, row.values()))} |" for name, row in rows.items()),
    ]


SCHEMES = {
    "psro": "PSRO, PPO as oracle: the meta-strategy",
    "mmd": "self-play of magnetic mirror descent: the last policy",
    "nfsp": "NFSP: the average network",
}


def learned_populations() -> list[str]:
    record = recorded("populations")
    if record is None:
        return []
    lines = [
        "",
        "`python benchmarks/populations.py`: NashConv (sum over players, checked by OpenSpiel) of learned populations, each run on one core "
        "unless roles say otherwise. Beside PSRO: what computed best responses come to (`experiment=kuhn_psro_exact`, `leduc_psro_exact`) after as "
        "many iterations, or when they converge before.",
        "",
        "| game | scheme | NashConv, mean over seeds | by seed | with computed best responses | environment steps | minutes | commit |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, entry in record["entries"].items():
        game, scheme = name.split("_", 1)
        runs = entry["runs"]
        gaps = [abs(run["nash_conv"]) for run in runs]
        roles = ", ".join(override for override in entry["overrides"] if override.startswith("roles."))
        minutes = [run["wall_s"] / 60 for run in runs]
        computed = "–"
        if scheme == "psro":
            iteration = min(len(runs[0]["curve"]), len(entry["computed"])) - 1
            computed = f"{abs(entry['computed'][iteration]):.3f}, iteration {iteration}"
        lines.append(
            f"| {game} | {SCHEMES[scheme]}{f' ({roles})' if roles else ''} | {sum(gaps) / len(gaps):.3f} | {' '.join(f'{gap:.3f}' for gap in gaps)} | "
            f"{computed} | {runs[0]['env_steps']:,} | {min(minutes):.1f} … {max(minutes):.1f} | {runs[0]['git']['commit'][:8]} |"
        )
    return lines


def payoff_workers() -> list[str]:
    record = recorded("payoff_workers")
    if record is None:
        return []
    low, high = min(record["ratios"]), max(record["ratios"])
    return [
        "",
        f"`python benchmarks/payoff_workers.py`: two rollout workers simulate a payoff table of {record['env']} at {record['ratio']:.2f} "
        f"[{low:.2f}, {high:.2f}] times the rate of one ({len(record['ratios'])} pairs of runs in turns, {record['cores']} cores, commit "
        f"{record['git']['commit'][:8]}); the tables are the same to the bit.",
    ]


def straggler() -> list[str]:
    record = recorded("straggler")
    if record is None:
        return []
    lines = [
        "",
        f"`python benchmarks/straggler.py`: gradients applied per second by {record['learners']} learners whose gradients take "
        f"{record['iteration_s']:g} s each by waiting, one of them four times as long where not said otherwise; {record['cores']} cores, commit "
        f"{record['git']['commit'][:8]}.",
        "",
        "| synchronization | gradients per second | of bsp | dropped |",
        "|---|---|---|---|",
    ]
    for name, row in record["table"].items():
        lines.append(f"| {name} | {row['gradients_per_s']:.2f} | {row['of_bsp']:.2f} | {row['dropped']:.0f} |")
    return lines


def samples() -> list[str]:
    record = recorded("synchronization")
    if record is None:
        return []
    first = next(iter(record["table"].values()))["runs"]
    low, high = record["table"]["bsp"]["interval"]
    lines = [
        "",
        f"`python benchmarks/synchronization.py`: where three learners of simple_spread (the port) end after {first[0]['env_steps']:,} "
        f"environment steps, {len(first)} seeds, return as {record['return_scale']}; 95 % interval of bsp's mean: [{low:.2f}, {high:.2f}]; "
        f"commit {record['git']['commit'][:8]}.",
        "",
        "| synchronization | return, mean over seeds [95 % interval] | age of data, in gradient steps | gradients' delay, in updates |",
        "|---|---|---|---|",
    ]
    for name, row in record["table"].items():
        age, delay = (
            f"{np.mean([r[key] for r in row['runs']]):.1f}" if key in row["runs"][0] else "–"
            for key in ("staleness/mean", "gradients/delay_mean")
        )
        low, high = row["interval"]
        lines.append(f"| {name} | {row['return_mean']:.2f} [{low:.2f}, {high:.2f}] | {age} | {delay} |")
    return lines


def shards() -> list[str]:
    record = recorded("shards")
    if record is None:
        return []
    transfers = record["transfers"]
    ways = [name for name in next(iter(transfers.values())) if name != "memory copy"]
    small, data = record["small"], record["dataset"]
    idle, busy = small["idle"], small["beside a busy learner"]
    lines = [
        "",
        f"`python benchmarks/shards.py`: GB/s of parameter shards (and of loopback TCP), one client, {record['cores']} cores, commit "
        f"{record['git']['commit'][:8]}; publishing and pulling go one way, an exchange hands in a gradient and gets the newest parameters.",
        "",
        "| bytes | " + " | ".join(ways) + " |",
        "|---" * (len(ways) + 1) + "|",
        *(
            f"| {int(size):,} | " + " | ".join(gb_per_s(entry[way], entry["loopback TCP"]) for way in ways) + " |"
            for size, entry in transfers.items()
        ),
        "",
        f"A pull of nothing newer takes {idle['nothing newer']['p50_ms']:.2f} ms, {idle['nothing newer']['p50_ms'] / idle['bare RPC']['p50_ms']:.2f} of a "
        f"bare RPC; 99 of 100 take at most {idle['nothing newer']['p99_ms']:.2f} ms, beside a learner that keeps a core busy "
        f"{busy['nothing newer']['p99_ms']:.2f} ms. Dataset shards take in {data['insert']['transitions_per_s']:,.0f} and give out "
        f"{data['sample']['transitions_per_s']:,.0f} transitions of simple_spread per second ({data['insert']['gb_per_s']:.2f} and "
        f"{data['sample']['gb_per_s']:.2f} GB/s): inserting costs {100 * data['share']['insert of collecting']:.1f} % of the time to collect "
        f"them, sampling {100 * data['share']['sample of learning']:.1f} % of the time to learn from them.",
    ]
    if crowds := record.get("crowds"):
        size = crowds["bytes"]
        lines += [
            "",
            f"| {size:,} bytes each | pull, GB/s together | exchange, GB/s together |",
            "|---|---|---|",
            *(
                f"| {name} | {entry['pull']['gb_per_s']:.2f} | {entry['exchange']['gb_per_s']:.2f} |"
                for name, entry in crowds.items()
                if name != "bytes"
            ),
        ]
    return lines


def gb_per_s(found: dict[str, float], tcp: dict[str, float]) -> str:
    share = "" if found is tcp else f" ({found['gb_per_s'] / tcp['gb_per_s']:.2f})"
    return f"{found['gb_per_s']:.2f}{share}"


def random_mdp() -> list[str]:
    record = recorded("networked_mdp")
    if record is None:
        return []
    lines = [
        "",
        "`python benchmarks/networked_mdp.py`: Zhang et al. 2018's random MDP (20 states, 2 actions an agent, private rewards, an MDP a seed): "
        f"the long-run average reward J, a mean over agents, after {400_384:,} environment steps, by seed; policies are tabular, critics linear "
        "in the state and the state times each agent's choice. In the middle critics are averaged over a sparse graph; commit "
        f"{record['git']['commit'][:8]}.",
        "",
        "| agents, algorithm | uniform policies | critics alone | networked | one center | optimum | gain over uniform, networked of center |",
        "|---|---|---|---|---|---|---|",
    ]
    more = recorded("networked_mdp-20")
    for name, found in {**record["results"], **(more["results"] if more else {})}.items():
        ways = {
            way: [f"{run['j']:.3f}" if "20" in name else f"{run['j']:.2f}" for run in runs] for way, runs in found["runs"].items()
        }
        best = " ".join(f"{x:.2f}" for x in found["j_optimum"]) if found.get("j_optimum") else "–"
        lines.append(
            f"| {name.replace('action_value', 'algorithm 1').replace('state_value', 'algorithm 2')} | "
            f"{' '.join(f'{x:.2f}' for x in found['j_uniform'])} | {' '.join(ways['independent'])} | {' '.join(ways['networked'])} | "
            f"{' '.join(ways['centralized'])} | {best} | {found['share_of_centralized_gain']['networked']:.2f} |"
        )
    first = next(iter(record["results"].values()))
    errors = [run["consensus_error"] for run in first["runs"]["networked"]]
    slopes = [slope for run in first["runs"]["networked"] if (slope := decline(run["consensus_error"])) is not None]
    lines += [
        "",
        "Gains over uniform policies, of what one center gains, by seed: "
        + "; ".join(
            f"{name.replace('action_value', 'algorithm 1').replace('state_value', 'algorithm 2')}: critics alone "
            f"{' '.join(f'{x:.2f}' for x in found['share_by_seed']['independent'])}, networked "
            f"{' '.join(f'{x:.2f}' for x in found['share_by_seed']['networked'])}"
            for name, found in {**record["results"], **(more["results"] if more else {})}.items()
        )
        + ".",
        "",
        f"How far critics are from their mean, relative to it, falls from {max(e[0][1] for e in errors):.1e} to at most "
        f"{max(e[-1][1] for e in errors):.1e} over the runs of the first line, and goes on to fall as a power of the step: with exponents from "
        f"{min(slopes):.2f} to {max(slopes):.2f} over the last three quarters (steps of critics fall with exponent -0.65).",
    ]
    longer = recorded("networked_mdp-long")
    if longer:
        run = next(iter(longer["results"].values()))["runs"]["networked"][0]
        lines[-1] += (
            f" One run went on to {run['env_steps']:,} environment steps: {run['consensus_error'][-1][1]:.1e}, exponent {decline(run['consensus_error']):.2f}."
        )
    return lines


def decline(curve: list[list[float]]) -> float | None:
    """The exponent by which the error of a curve [(environment steps, error)] falls over its last three quarters: a fit of least squares in
    logarithms."""
    late = [(math.log(steps), math.log(error)) for steps, error in curve if steps > curve[-1][0] / 4 and error > 0]
    if len(late) < 3:
        return None
    logarithms = np.array(late)
    return float(np.polyfit(logarithms[:, 0], logarithms[:, 1], 1)[0])


def cue() -> list[str]:
    record = recorded("networked_cue")
    if record is None:
        return []
    steps = record["results"]["neurcomm"]["runs"][0]["env_steps"]
    lines = [
        "",
        f"`python benchmarks/networked_cue.py`: one agent sees one of four symbols, another, four hops away, is paid for it: return of greedy "
        f"policies after {steps:,} environment steps (best {record['best']:g}, chance {record['chance']:g}), commit {record['git']['commit'][:8]}.",
        "",
        "| agents exchange | return, mean over seeds [95 % interval] | seeds that solve it |",
        "|---|---|---|",
    ]
    said = {"independent": "nothing", "consensus": "critics' parameters"}
    for name, row in record["results"].items():
        low, high = row["interval"]
        lines.append(
            f"| {said.get(name, name)} | {row['mean']:.2f} [{low:.2f}, {high:.2f}] | {row['solved']} of {len(row['runs'])} |"
        )
    return lines


def wireless() -> list[str]:
    record = recorded("networked_wireless")
    if record is None:
        return []
    lines = [
        "",
        f"`python benchmarks/networked_wireless.py`: discounted throughput of a user in wireless access (Qu et al. 2020; 30 steps, γ = "
        f"{record['gamma']:g}), {record['episodes']} episodes, commit {record['git']['commit'][:8]}.",
        "",
        "| | mean [95 % interval] | by seed |",
        "|---|---|---|",
    ]
    for name, row in record["results"].items():
        low, high = row["interval"]
        each = " ".join(f"{score:.3f}" for score in row.get("scores", [])) or "–"
        lines.append(f"| {name} | {row['mean']:.3f} [{low:.3f}, {high:.3f}] | {each} |")
    return lines


PLATOONS = {
    "catchup": "critics averaged with neighbors'",
    "slowdown": "critics and policies averaged with neighbors'",
    "independent": "each by itself",
    "consensus": "critics averaged with neighbors'",
    "all": "critics and policies averaged with neighbors', four rounds a step",
    "neurcomm": "critics averaged, NeurComm",
}


def platoons() -> list[str]:
    beside = recorded("cacc_baselines")
    lines = []
    for vehicles in (8, 100):
        record = recorded(f"networked_cacc-{vehicles}")
        if record is None or beside is None:
            continue
        steps = {name: rows[next(iter(rows))]["runs"][0]["env_steps"] for name, rows in record["table"].items()}
        lines += [
            "",
            f"`python benchmarks/networked_cacc.py`, {vehicles} vehicles: the platoon's score as its authors take it (mean over steps of the sum over "
            f"vehicles), 100 episodes a seed played greedily, after {', '.join(f'{n:,} environment steps ({s})' for s, n in steps.items())}; commit "
            f"{record['git']['commit'][:8]}.",
            "",
            "| scenario | | score, mean [95 % interval] | by seed | episodes that end in a collision |",
            "|---|---|---|---|---|",
        ]
        for scenario, rows in record["table"].items():
            for way, row in rows.items():
                low, high = row["interval"]
                told = PLATOONS[scenario if way == "experiment" else way]
                if row.get("setting"):
                    rate, discount = (chosen.partition("=")[2] for chosen in row["setting"])
                    told += f"; learning rate {rate}, reward discount {discount}"
                each = " ".join(f"{run['score']:.0f}" for run in row["runs"])
                hit, played = (sum(run[key] for run in row["runs"]) for key in ("collisions", "episodes"))
                lines.append(
                    f"| {scenario} | {told} | {row['score_mean']:.1f} [{low:.1f}, {high:.1f}] | {each} | {hit} of {played} |"
                )
            others = (
                beside["results"][scenario]
                if vehicles == beside["vehicles"]
                else {name: rows[scenario] for name, rows in record["constants"].items()}
            )
            for name, row in others.items():
                if name.startswith(("constant", "linear")):
                    low, high = row["interval"]
                    lines.append(f"| {scenario} | {name} | {row['mean']:.1f} [{low:.1f}, {high:.1f}] | – | {row['crashed']:.0%} |")
    return lines


def many_agents() -> list[str]:
    record = recorded("networked_scale")
    if record is None:
        return []
    lines = [
        "",
        f"`python benchmarks/networked_scale.py`: agents with parameters of their own that learn at once, {record['cores']} cores, commit "
        f"{record['git']['commit'][:8]}; the split is of all ranks' seconds.",
        "",
        "| agents | learners, workers | agent-steps per second of training | agent-steps | seconds | learners' time | workers' time |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in record["runs"].items():
        asked = dict(item.split("=", 1) for item in row["overrides"])
        split = []
        for role in ("learner", "rollout"):
            parts = sorted(row["split_s"][role].items(), key=lambda pair: -pair[1])[:4]
            split.append(", ".join(f"{kind} {seconds:.0f}" for kind, seconds in parts))
        lines.append(
            f"| {int(name):,} | {asked['roles.learner']}, {asked['roles.rollout']} | {row['agent_steps_per_s']:,.0f} | {row['agent_steps']:,} | "
            f"{row['training_s']:.0f} of {row['whole_s']:.0f} | {split[0]} | {split[1]} |"
        )
    return lines


def neighbors() -> list[str]:
    record = recorded("neighbor_allreduce")
    if record is None:
        return []
    ways = {
        "local mixing": "local mixing", "local mixing, PyTorch's product": "the same by PyTorch", "shared memory": "shared memory",
        "MPI Neighbor_alltoallv": "MPI Neighbor_alltoallv", "all-to-all": "all-to-all", "point-to-point": "point-to-point",
        "all-reduce": "all-reduce", "all-gather, then mixing": "all-gather, then mixing", "a message an edge": "a message an edge",
    }  # fmt: skip
    lines = [
        "",
        f"`python benchmarks/neighbor_allreduce.py`: mixing with graph neighbors, beside what others do instead; times of a memory copy of the "
        f"same bytes on the same ranks ({record['cores']} cores, commit {record['git']['commit'][:8]}). Rows are summed by the compiled kernel "
        "where not said otherwise. Agents of the torus have 4 neighbors, those of the random geometric graphs 24. One rank exchanges nothing: "
        "its figure under shared memory is the whole step.",
        "",
        "| graph, agents, numbers each, ranks | memory copy, ms | " + " | ".join(ways.values()) + " |",
        "|---" * (len(ways) + 2) + "|",
    ]
    larger = recorded("neighbor_allreduce-large") or {"table": {}}  # --agents 10000 100000 --widths 1000 10000
    for case, row in {**larger["table"], **record["table"]}.items():
        row = {**row, "shared memory": row.get("shared memory", row.get("alone", math.nan))}
        cells = [
            f"{row[way] / row['memory copy' if 'MPI' not in way else 'memory copy (beside MPI)']:.2f}" if way in row else "–"
            for way in ways
        ]
        lines.append(f"| {case} | {row['memory copy']:.3f} | " + " | ".join(cells) + " |")
    if claims := record.get("claims"):
        lines += ["", "| over all cases but those of 400 MB | aim | held in | median | best | worst |", "|---|---|---|---|---|---|"]
        for row in claims:
            if not row["cases"]:
                continue
            best = (min if row["allowed"] == "most" else max)(row["values"], key=row["values"].get)
            lines.append(
                f"| {row['claim']} | at {row['allowed']} {row['bound']:g} | {row['held']} of {row['cases']} | {row['median']:.2f} | "
                f"{row['values'][best]:.2f} ({best}) | {row['worst']:.2f} ({row['worst_case']}) |"
            )
    return lines


def recorded(name: str) -> dict[str, Any] | None:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def entries(suite: str) -> dict[str, Any]:
    """What `benchmarks/learning.py` has run of a suite, by name."""
    path = RESULTS / "learning" / f"{suite}.json"
    return json.loads(path.read_text())["entries"] if path.exists() else {}


def finished(entry: dict[str, Any]) -> list[dict[str, Any]]:
    return [r for r in entry["runs"] if r["status"] == "finished"]


def several(values: list[float]) -> str:
    """Each, or where there are many their interquartile mean and its interval."""
    if len(values) <= 5:
        return " ".join(f"{round(value, 2):g}" for value in values) or "–"
    low, high = bootstrap_interval(values)
    return f"{interquartile_mean(values):.2f} [{low:.2f}, {high:.2f}]"


def main() -> None:
    readme = ROOT / "README.md"
    before, found, rest = readme.read_text().partition("<!-- measured -->\n")
    _, ended, after = rest.partition("<!-- end -->")
    if not found or not ended:
        raise SystemExit("README.md has no markers '<!-- measured -->' and '<!-- end -->'")
    readme.write_text(before + found + "\n".join(headlines()) + "\n" + ended + after)
    head = "# Results\n\nWritten by `python benchmarks/readme.py` from `benchmarks/results/`, where each record has its commit and versions.\n\n"
    (ROOT / "benchmarks" / "RESULTS.md").write_text(head + tables() + "\n")


if __name__ == "__main__":
    main()
