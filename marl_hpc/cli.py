"""The command: `marl-hpc train|resume|evaluate|report …`, or `python -m marl_hpc …` under any launcher.

Signal handlers come before anything else is imported: a signal that arrives early is a stop, not the end of the process.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marl_hpc.comm.supervisor import receive_signals

if TYPE_CHECKING:
    from marl_hpc.config import Config
    from marl_hpc.summary import Summary

USAGE = """usage: marl-hpc [train] OVERRIDES…      train; for example: marl-hpc env=mpe/simple_spread budget.env_steps=200000
       marl-hpc resume RUN OVERRIDES…  continue a stopped run, or a finished one with a larger budget
       marl-hpc evaluate RUN [episodes=100] [greedy=false] [seed=1] [env.KEY=VALUE…]  play a run's policies, print their return
       marl-hpc report RUN             write RUN/report.html again
       marl-hpc plan OVERRIDES…        print which rank would take which role, and how a graph of agents is divided; and stop
       marl-hpc new env|algorithm NAME write NAME.py to start from
the same words follow `python -m marl_hpc`, under torchrun, srun, mpiexec or alone; overrides are hydra's (key=value)"""


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0 finished, 75 stopped with a checkpoint, 2 wrong configuration, 1 failed."""
    signals = receive_signals()
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # where a user's own module:function lies; `python -m` has it there, the command not
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    command = arguments.pop(0) if arguments and "=" not in arguments[0] else "train"
    from marl_hpc.config import ConfigError

    try:
        if command == "train":
            return _exit(_train(arguments, signals))
        if command == "resume":
            return _exit(_resume(arguments, signals))
        if command == "report":
            from marl_hpc.report import render

            print(render(_run_folder(arguments)))
            return 0
        if command == "evaluate":
            from marl_hpc.train import evaluate_run

            print(evaluate_run(_run_folder(arguments[:1]), arguments[1:]))
            return 0
        if command == "plan":
            print(_plan(arguments))
            return 0
        if command == "new":
            from marl_hpc.new import new

            print(new(arguments))
            return 0
        print(USAGE, file=sys.stderr)
        return 0 if command in ("-h", "--help", "help") else 2
    except ConfigError as error:
        print(f"wrong configuration: {error}", file=sys.stderr)
        return 2


def run(config: Config | list[str]) -> Summary:
    """Train as the command does: `config` is a typed configuration or a list of overrides. Raises ConfigError where it is wrong.

    SIGINT, SIGTERM and SIGUSR1 stop the run with a checkpoint while it lasts.
    With cluster.supervise=false the role runs in this process: where it fails under a launcher, or can't be ended, the process ends, too.
    """
    import signal

    from marl_hpc.comm.zygote import SIGNALS
    from marl_hpc.compose import compose
    from marl_hpc.job import run_job

    before = {number: signal.getsignal(number) for number in SIGNALS}
    signals = receive_signals()
    try:
        overrides = config if isinstance(config, list) else []
        return run_job(compose(config) if isinstance(config, list) else config, overrides, signals)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _train(overrides: list[str], signals: list[int]) -> Summary:
    from marl_hpc.compose import compose
    from marl_hpc.job import run_job

    return run_job(compose(overrides), overrides, signals)


def _resume(arguments: list[str], signals: list[int]) -> Summary:
    import yaml
    from omegaconf import OmegaConf

    from marl_hpc.compose import from_record
    from marl_hpc.config import ConfigError
    from marl_hpc.job import run_job

    folder = _run_folder(arguments[:1])
    record: Any = OmegaConf.create(yaml.safe_load((folder / "config.yaml").read_text()))
    for item in arguments[1:]:
        key, _, value = item.partition("=")
        if OmegaConf.is_dict(record.get(key)) and not isinstance(yaml.safe_load(value), dict):
            raise ConfigError(
                f"{item}: a run that goes on keeps its {key} ({record[key].get('name', 'see config.yaml')}); change single options of it, such as "
                f"budget.env_steps=…, or start another run with {item}"
            )
        OmegaConf.update(record, key, yaml.safe_load(value))
    record.run.dir, record.run.resume = str(folder), "auto"
    return run_job(from_record(OmegaConf.to_container(record)), arguments, signals, resume_from=folder)  # type: ignore[arg-type]


def _run_folder(arguments: list[str]) -> Path:
    from marl_hpc.config import ConfigError

    if not arguments or not (Path(arguments[0]) / "config.yaml").is_file():
        raise ConfigError(f"expected a run's folder (with config.yaml in it); got {arguments[:1] or 'nothing'}")
    return Path(arguments[0]).absolute()


def _plan(overrides: list[str]) -> str:
    import os

    from marl_hpc.comm.launchers import identify
    from marl_hpc.compose import compose
    from marl_hpc.config import networked
    from marl_hpc.roles.assign import assign, count_roles, table

    config = compose(overrides)
    size = identify(os.environ).size or None
    counts = count_roles(config.roles, size, networked=networked(config))
    hosts = ["this host"] * sum(counts.values())
    lines = [table(assign(counts, hosts), hosts)]
    if networked(config):
        from marl_hpc.train import graph_lines  # makes the environment

        lines += graph_lines(config, counts["learner"])
    return "\n".join(lines)


def _exit(summary: Summary) -> int:
    from marl_hpc.summary import last_words

    if words := last_words(summary):
        print(words, file=sys.stderr)
    return summary.code
