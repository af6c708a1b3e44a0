"""Overrides to typed configuration, and what is said when they are wrong."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml

import marl_hpc
from marl_hpc import algorithms, cli, paradigms
from marl_hpc.algorithms.ppo import PPO, PPOConfig
from marl_hpc.building import make_env
from marl_hpc.compose import compose, from_record
from marl_hpc.config import Config, ConfigError, Rollout, fingerprint, validate


def test_defaults_are_the_dataclasses_and_the_first_choices():
    config = compose([])
    named = {"env": {"name": "mpe/simple_spread"}, "algorithm": {"name": "ppo"}}
    assert config == Config(**named)


def test_overrides_reach_their_sections_with_their_types():
    config = compose(
        ["seed=3", "rollout.envs=8", "rollout.max_lag=0", "budget.seconds=90", "evaluate.greedy=true", "run.dir=somewhere"]
    )
    assert (config.seed, config.rollout, config.evaluate.greedy) == (3, Rollout(envs=8, max_lag=0), True)
    assert (config.budget.seconds, type(config.budget.seconds)) == (90.0, float)
    assert config.run.dir == "somewhere"
    assert compose(["budget.seconds=null"]).budget.seconds is None


def test_choices_come_from_yaml_files():
    assert compose(["env=mpe/simple_tag"]).env == {"name": "mpe/simple_tag"}
    assert compose(["logger=wandb"]).logger.name == "wandb"
    config = compose(["experiment=quickstart", "budget.env_steps=500"])
    assert (config.rollout.envs, config.budget.env_steps) == (32, 500)


def test_every_environment_has_a_choice_of_its_own():
    from marl_hpc.envs import ENVS

    for name in ENVS:
        assert compose([f"env={name}"]).env["name"] == name


def test_env_and_algorithm_sections_take_any_key():
    config = compose(
        ["env=mpe/simple_spread", "env.N=5", "env.kwargs.local_ratio=0.0", "algorithm.lr=1e-3", "algorithm.hidden=[32,32]"]
    )
    assert config.env == {"name": "mpe/simple_spread", "N": 5, "kwargs": {"local_ratio": 0.0}}
    assert config.algorithm == {"name": "ppo", "lr": 1e-3, "hidden": [32, 32]}
    assert compose(["env.name=my_module:make", "env.size=3"]).env == {"name": "my_module:make", "size": 3}


def test_options_of_a_topology_are_given_one_by_one_or_together():
    run = ["paradigm=networked", "topology=erdos_renyi"]
    assert compose([*run, "topology.options.degree=5"]).topology.options == {"degree": 5}
    assert compose([*run, "topology.options.degree=5", "topology.options.seed=2"]).topology.options == {"degree": 5, "seed": 2}
    both = compose([*run, "topology.options={degree: 5}", "topology.options.seed=2"])
    assert both == compose([*run, "topology.options={degree: 5, seed: 2}"])
    assert from_record(asdict(both)) == both


def test_groups_are_a_word_or_a_mapping():
    assert compose(["groups=separate"]).groups == "separate"
    assert compose(["groups={agent_0: a, agent_1: b}"]).groups == {"agent_0": "a", "agent_1": "b"}


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("rolout.envs=3", ["rolout", "rollout"]),
        ("rollout.env=3", ["rollout.env", "fragment"]),
        ("sede=1", ["sede", "seed"]),
        ("topology.optoins.degree=5", ["topology.optoins", "'options'"]),
        ("topology.options.degree.much=5", ["topology.options.degree.much", "unknown key"]),
        ("groups.agent_0=a", ["agent_0"]),
        ("rollout.envs=abc", ["rollout.envs", "abc", "Integer"]),
        ("rollout.envs=1.5", ["rollout.envs", "1.5"]),
        ("seed=x", ["seed", "'x'"]),
        ("budget.seconds=soon", ["budget.seconds", "soon"]),
        ("evaluate.greedy=perhaps", ["evaluate.greedy", "perhaps"]),
        ("env=mpe/simple_sprad", ["env", "mpe/simple_sprad", "mpe/simple_spread"]),
        ("algorithm=pop", ["algorithm", "pop", "ppo"]),
        ("paradigm=indepedent", ["paradigm", "indepedent", "independent"]),
        ("logger=wandbb", ["logger", "wandbb", "wandb"]),
        ("device=tpu", ["device='tpu'", "auto, cpu, cuda"]),
        ("dtype=float16", ["dtype='float16'", "float32, float64"]),
        ("world=threads", ["world='threads'", "processes, inline"]),
        ("cluster.membership=fluid", ["cluster.membership='fluid'", "elastic, static"]),
        ("rollout.max_lag=2", ["rollout.max_lag=2", "0 ", "1 "]),
        ("rollout.fragment=0", ["rollout.fragment=0", "greater than 0"]),
        ("budget.env_steps=-5", ["budget.env_steps=-5", "greater than 0"]),
        ("timeouts.scale=0", ["timeouts.scale=0"]),
        ("roles.learner=0", ["roles.learner=0", "at least one"]),
        ("roles.inference=-1", ["roles.inference=-1", "0 (rollout workers act by themselves)"]),
        ("inference.max_batch=0", ["inference.max_batch=0", "greater than 0"]),
        ("inference.max_wait_ms=-1", ["inference.max_wait_ms=-1", "0 (answer at once)"]),
        ("inference.max_batch=64", ["inference.max_batch needs an inference role", "roles.inference=0", "set roles.inference=1"]),
        ("inference.max_wait=64", ["inference.max_wait", "max_wait_ms"]),
        ("seed=-1", ["seed=-1"]),
        ("nonsense", ["nonsense"]),
        ("~env", ["env.name is missing", "env=mpe/simple_spread"]),
        ("~algorithm", ["algorithm.name is missing", "algorithm=ppo"]),
    ],
)
def test_what_is_wrong_is_named_with_what_would_be_right(override, words):
    with pytest.raises(ConfigError) as caught:
        compose([override])
    assert [word for word in words if word not in str(caught.value)] == []


def test_configuration_is_frozen():
    config = compose([])
    with pytest.raises(AttributeError):
        config.seed = 3
    with pytest.raises(AttributeError):
        config.rollout.envs = 3


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["seed=4", "roles.rollout=3", "budget.return_mean=-21.5", "groups={agent_0: a}", "env.N=4", "algorithm.hidden=[8]"],
        ["experiment=quickstart", "run.dir=here", "logger=wandb", "env.kwargs.deep.er=1"],
    ],
)
def test_plain_form_gives_the_configuration_back(overrides):
    config = compose(overrides)
    assert from_record(asdict(config)) == config
    assert fingerprint(from_record(asdict(config))) == fingerprint(config)


def test_wrong_record_is_a_configuration_error():
    record = asdict(compose([]))
    with pytest.raises(ConfigError, match=r"rollout\.envs"):
        from_record({**record, "rollout": {**record["rollout"], "envs": "many"}})
    with pytest.raises(ConfigError, match="rolout"):
        from_record({**record, "rolout": {}})
    with pytest.raises(ConfigError, match="device='tpu'"):
        from_record({**record, "device": "tpu"})


def test_fingerprint_changes_with_what_decides_the_policies():
    changes = [
        "seed=1", "env=mpe/simple_tag", "env.N=4", "algorithm.lr=1e-3", "rollout.envs=8", "rollout.fragment=50", "rollout.max_lag=0",
        "groups=separate", "dtype=float64",
    ]  # fmt: skip
    prints = [fingerprint(compose(change)) for change in ([], *([change] for change in changes))]
    assert len(set(prints)) == len(changes) + 1


@pytest.mark.parametrize(
    "change",
    [
        "budget.env_steps=5", "budget.seconds=5", "run.dir=there", "roles.learner=2", "logger=wandb", "timeouts.scale=2",
        "faults.limit=1", "checkpoint.keep=9", "evaluate.episodes=3", "cluster.membership=static", "world=inline", "device=cpu",
    ],
)  # fmt: skip
def test_fingerprint_does_not_change_with_where_and_how_long(change):
    assert compose([change]) != compose([])
    assert fingerprint(compose([change])) == fingerprint(compose([]))


def test_validate_returns_what_it_was_given():
    config = compose([])
    assert validate(config) is config
    with pytest.raises(ConfigError, match=r"sync.name='ssp'.*bsp"):
        validate(replace(config, sync=replace(config.sync, name="ssp")))


def test_algorithm_section_becomes_its_dataclass():
    algorithm, typed = algorithms.configure({"name": "ppo", "lr": "1e-3", "hidden": [8], "value_clip": None})
    assert algorithm is PPO
    assert typed == PPOConfig(lr=1e-3, hidden=[8], value_clip=None)
    assert algorithms.configure({"name": "marl_hpc.algorithms.ppo:PPO"}) == (PPO, PPOConfig())


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"name": "pop"}, ["algorithm.name='pop'", "known: a2c, ", "ppo, ", "did you mean 'ppo'"]),
        ({"name": "trpo"}, ["algorithm.name='trpo'", "known: a2c, "]),
        ({"name": "no_such_module:PPO"}, ["no_such_module", "could not be imported"]),
        ({"name": "marl_hpc.algorithms.ppo:Missing"}, ["Missing", "could not be imported"]),
        ({"name": "ppo", "gama": 0.9}, ["algorithm.gama=0.9", "did you mean algorithm.gamma?", "minibatches"]),
        ({"name": "ppo", "zzz": 0.9}, ["algorithm.zzz=0.9", "known: hidden", "gamma"]),
        ({"name": "ppo", "lr": "fast"}, ["algorithm", "lr", "fast"]),
        ({"name": "ppo", "epochs": 1.5}, ["algorithm", "epochs", "1.5"]),
        ({"name": "ppo", "hidden": 64}, ["algorithm", "hidden", "64"]),
    ],
)
def test_wrong_algorithm_section_is_named(section, words):
    with pytest.raises(ConfigError) as caught:
        algorithms.configure(section)
    assert [word for word in words if word not in str(caught.value)] == []


def test_faults_must_be_counted_for_longer_than_roles_may_hang():
    with pytest.raises(ConfigError, match=r"faults.window_s=600.*set faults.window_s=3600"):
        compose(["faults.window_s=600"])
    assert compose(["faults.window_s=600", "timeouts.checkpoint_s=60", "timeouts.start_s=100"]).faults.window_s == 600


EXPERIMENTS = Path(marl_hpc.__file__).parent / "configs" / "experiment"


@pytest.mark.parametrize("name", sorted(str(path.relative_to(EXPERIMENTS).with_suffix("")) for path in EXPERIMENTS.rglob("*.yaml")))
def test_every_experiment_can_be_planned(name):
    config = compose([f"experiment={name}"])
    env = make_env(config, 1)
    assert paradigms.plan(config, env.spec)
    env.close()


def test_unknown_experiment_is_told_the_known_ones():
    with pytest.raises(ConfigError, match="climbing/mapo") as caught:
        compose(["experiment=climbing/mapo"])
    assert "climbing/mappo" in str(caught.value)


@pytest.mark.parametrize("change", ["topology=ring", "algorithm=a2c", "paradigm=ctde"])
def test_a_run_that_goes_on_keeps_its_choices(tmp_path, capsys, change):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(asdict(compose([]))))
    assert cli.main(["resume", str(tmp_path), change]) == 2
    said = capsys.readouterr().err
    key = change.partition("=")[0]
    assert f"{change}: a run that goes on keeps its {key} (" in said
    assert f"start another run with {change}" in said
