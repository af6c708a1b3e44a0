"""The command's edges: wrong configurations, strangers, loggers, other ways in."""

import json
import os
import re
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from rigs import program


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("budget.env_stepz=3",), "env_stepz"),
        (("seed=many",), "seed"),
        (("device=tpu",), "auto, cpu, cuda"),
        (("algorithm.learning_rate=3",), "algorithm.learning_rate"),
        (("algorithm.lr=fast",), "fast"),
        (("env.name=mpe/simple_spred",), "mpe/simple_spread"),
        (("env.colour=red",), "colour"),
        (("roles.learner=2", "world=inline"), "roles.learner"),
        (("paradigm.name=socialist",), "independent"),
    ],
)
def test_wrong_configuration_exits_2_before_any_rank_starts(tmp_path, overrides, said):
    run_dir = tmp_path / "run"
    text = program.run(program.train(run_dir, *overrides), cwd=tmp_path, code=2)
    assert said in text
    assert "Traceback" not in text
    assert not run_dir.exists()


def test_more_roles_than_ranks_is_a_wrong_configuration_on_every_rank(tmp_path):
    started = [
        program.start(
            program.train(tmp_path / "run", "roles.rollout=4"), cwd=tmp_path,
            env={"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"},
        )
        for rank in range(2)
    ]  # fmt: skip
    for text in program.join(started, code=2):
        assert "roles ask for 7 ranks" in text
        assert "start at least" in text


def test_a_folder_in_use_is_left_alone(tmp_path):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "thesis.tex").write_text("mine")
    assert "isn't empty" in program.run(program.train(run_dir), cwd=tmp_path, code=2)
    assert [path.name for path in run_dir.iterdir()] == ["thesis.tex"]


def listening(pid: int) -> set[str]:
    """Addresses that a process listens on, from /proc."""
    inodes = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found = re.match(r"socket:\[(\d+)\]", os.readlink(descriptor))
        except OSError:
            continue
        if found:
            inodes.add(found[1])
    addresses = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                addresses.add(fields[1])
    return addresses


@pytest.fixture
def running(tmp_path):
    """A run under way: (its folder, {role: pid}, supervisor's pid)."""
    run_dir = tmp_path / "run"
    overrides = ("budget.env_steps=10000000", "roles.learner=2", "rollout.envs=4")
    started = program.start(program.train(run_dir, *overrides), cwd=tmp_path)
    until = time.monotonic() + 60
    while not program.learned(run_dir) and time.monotonic() < until:
        time.sleep(0.1)
    assert program.learned(run_dir)
    pids = {}
    for log in (run_dir / "logs").glob("rank_*.log"):
        role, pid = re.findall(r"\| (\S+) starts: pid (\d+)", log.read_text())[-1]
        pids[role] = int(pid)
    yield run_dir, pids, started.process.pid
    os.kill(started.process.pid, 15)
    program.join([started], code=75)


def test_everything_listens_on_loopback_and_strangers_run_nothing(running, tmp_path):
    run_dir, pids, supervisor = running
    ports = {}
    for role, pid in {**pids, "supervisor": supervisor}.items():
        for address in listening(pid):
            host, _, port = address.partition(":")
            assert host == "0100007F", f"{role} listens on {address}"
            ports.setdefault(role, []).append(int(port, 16))
    assert "supervisor" in ports
    assert "dataset/0" in ports

    # a stranger who speaks RPC but doesn't have the key
    stranger = textwrap.dedent(
        """
        import os, sys, torch, torch.distributed as dist, torch.distributed.rpc as rpc
        os.environ["TP_SOCKET_IFNAME"] = "lo"
        import torch.distributed.autograd as autograd
        from torch.distributed.rpc import TensorPipeAgent, WorkerInfo, api
        store = dist.HashStore()
        options = rpc.TensorPipeRpcBackendOptions(num_worker_threads=2, rpc_timeout=10, _transports=["uv"], _channels=["basic"])
        autograd._init(99)
        agent = TensorPipeAgent(store, "stranger:99", 99, None, options, {}, [])
        api._init_rpc_states(agent)
        store.set("addrs/victim:0", sys.argv[1])
        agent._update_group_membership(WorkerInfo("victim:0", 0), [], {}, True)
        try:
            rpc.rpc_sync("victim:0", os.system, (f"touch {sys.argv[2]}",))
        except Exception as error:
            print("refused:", type(error).__name__, str(error)[:300])
        else:
            print("served")
        sys.stdout.flush()
        os._exit(0)
        """
    )
    proof = tmp_path / "broken_into"
    refused = 0
    for port in ports["dataset/0"]:
        address = f"uv://127.0.0.1:{port}"
        done = subprocess.run(
            [sys.executable, "-c", stranger, address, str(proof)],
            capture_output=True, text=True, timeout=60, env=program.environment(),
        )  # fmt: skip
        refused += "refused" in done.stdout
        assert "served" not in done.stdout
    assert refused
    assert not proof.exists()

    # a stranger at the store
    from multiprocessing import AuthenticationError
    from multiprocessing.connection import Client

    with pytest.raises((AuthenticationError, EOFError, ConnectionError)):
        Client(("127.0.0.1", ports["supervisor"][0]), authkey=b"guess")
    silent = socket.create_connection(("127.0.0.1", ports["supervisor"][0]))
    before = program.learned(run_dir)[-1]
    time.sleep(2)
    assert program.learned(run_dir)[-1] > before, "the run goes on while a stranger holds a connection"
    silent.close()


def test_wandb_is_offline_without_an_account(tmp_path):
    run_dir = tmp_path / "run"
    home = tmp_path / "home"
    home.mkdir()
    program.run(program.train(run_dir, "logger=wandb"), cwd=tmp_path, env={"HOME": str(home)})
    program.finished(run_dir)
    assert list(run_dir.glob("wandb/offline-run-*/*.wandb"))


def test_an_environment_of_the_users_own_is_one_function(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from mpe2 import simple_spread_v3\n\n\ndef spread(agents):\n    return simple_spread_v3.parallel_env(N=agents)\n"
    )
    run_dir = tmp_path / "run"
    overrides = ("env.name=mine:spread", "env.agents=2")
    program.run(program.train(run_dir, *overrides), cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)})
    assert program.finished(run_dir).summary["agent_steps"] == 2 * program.ENV_STEPS


def test_continuous_actions_train_and_the_policy_loads(tmp_path):
    import marl_hpc

    run_dir = tmp_path / "run"
    program.run(program.train(run_dir, "env.continuous_actions=true", "world=inline"), cwd=tmp_path)
    policy = marl_hpc.load_policy(run_dir, "agent_1")
    action = policy.act([0.0] * 18)
    assert action.shape == (5,)
    assert ((action >= 0) & (action <= 1)).all()


def test_run_from_python(tmp_path):
    script = textwrap.dedent(
        f"""
        import marl_hpc
        summary = marl_hpc.run({list(program.OVERRIDES)!r} + ["run.dir={tmp_path}/run"])
        assert summary.status == "finished" and summary.record["env_steps"] >= {program.ENV_STEPS}, summary
        """
    )
    program.run([sys.executable, "-c", script], cwd=tmp_path)
    program.finished(tmp_path / "run")


def test_goal_and_time_budgets_end_a_run(tmp_path):
    run_dir = tmp_path / "run"
    overrides = ("budget.env_steps=10000000", "budget.seconds=3", "rollout.envs=4")
    program.run(program.train(run_dir, *overrides), cwd=tmp_path)
    summary = json.loads((run_dir / "summary.json").read_text())
    assert "budget.seconds" in summary["exit_reason"]
    (tmp_path / "goal").mkdir()
    run_dir = tmp_path / "goal" / "run"
    overrides = ("budget.env_steps=10000000", "budget.return_mean=-1000", "evaluate.every_steps=500")
    program.run(program.train(run_dir, *overrides), cwd=tmp_path)
    summary = json.loads((run_dir / "summary.json").read_text())
    assert "budget.return_mean" in summary["exit_reason"]
    assert summary["evaluate"]["episodes"] == 2


def test_the_wheel_trains_without_the_checkout(tmp_path):
    wheels, site = tmp_path / "wheels", tmp_path / "site"
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(wheels), str(program.ROOT)]
    program.run(build, cwd=tmp_path)
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        str(site),
        *map(str, wheels.glob("*.whl")),
    ]
    program.run(install, cwd=tmp_path)
    where = "import marl_hpc; print(marl_hpc.__file__)"
    env = {"PYTHONPATH": str(site)}
    assert str(site) in program.run([sys.executable, "-c", where], cwd=tmp_path, env=env)
    program.run(program.train(tmp_path / "run"), cwd=tmp_path, env=env)
    program.finished(tmp_path / "run")
