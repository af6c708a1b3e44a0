"""What a run starts from: nothing, its own checkpoints, or one that is named."""

from dataclasses import replace

import pytest
import yaml

from marl_hpc.config import Config, ConfigError, Run, fingerprint
from marl_hpc.run_folder import open_run
from marl_hpc.storage import checkpoint
from marl_hpc.storage.checkpoint import Manifest


def configured(folder, resume="default", seed=0):
    return Config(env={"name": "e"}, algorithm={"name": "a"}, seed=seed, run=Run(dir=str(folder), resume=str(resume)))


def save(run_dir, env_steps, seed=0):
    folder = checkpoint.begin(run_dir, env_steps)
    (folder / "learner-a.bin").write_bytes(b"learner" * env_steps)
    manifest = Manifest(
        fingerprint=fingerprint(configured(run_dir, seed=seed)), iteration=env_steps // 10, env_steps=env_steps,
        agent_steps=env_steps, learner_steps=env_steps // 10, wall_s=1.0,
        files={"learner-a.bin": checkpoint.checksum(folder / "learner-a.bin")},
    )  # fmt: skip
    return checkpoint.complete(folder, manifest, 10)


def damage(folder):
    (folder / "learner-a.bin").write_bytes(b"torn")


@pytest.fixture
def source(tmp_path):
    """A run with checkpoints of 10, 20 and 30 steps."""
    folder = tmp_path / "source"
    for env_steps in (10, 20, 30):
        save(folder, env_steps)
    (folder / "config.yaml").write_text("")
    return folder


def start(config, generation=0, **options):
    """Name of the checkpoint that a run so configured starts from."""
    found = open_run(config, **{"restarted": False, **options}).start(config, generation)
    return found and found[0].name


def test_new_folder_gets_its_configuration_and_starts_at_the_beginning(tmp_path):
    assert start(configured(tmp_path / "run", seed=3)) is None
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["seed"] == 3
    assert (tmp_path / "run" / "logs").is_dir()


@pytest.mark.parametrize(("how", "options"), [("auto", {}), ("default", {"restarted": True})])
def test_own_checkpoints_are_taken_up(source, how, options):
    assert start(configured(source, how), **options) == "step_30"
    damage(source / "checkpoints" / "step_30")
    assert start(configured(source, how), **options) == "step_20"


def test_resume_command_takes_up_the_run_that_it_names(source):
    assert start(configured(source, "never"), resume_from=source) == "step_30"


@pytest.mark.parametrize("how", ["default", "never"])
def test_folder_in_use_is_refused_unless_asked_for(source, how):
    with pytest.raises(ConfigError, match=r"isn't empty.*run\.resume=auto"):
        start(configured(source, how))


@pytest.mark.parametrize(
    ("name", "expected"), [("checkpoints/step_20", "step_20"), ("checkpoints/step_10/", "step_10"), ("", "step_30")]
)
def test_named_checkpoint_is_where_another_run_starts(source, tmp_path, name, expected):
    config = configured(tmp_path / "run", f"{source}/{name}")
    assert start(config) == expected


def test_named_checkpoint_is_found_by_a_relative_path(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert start(configured(tmp_path / "run", "source/checkpoints/step_20")) == "step_20"


def test_generations_after_the_first_go_on_from_the_runs_own_checkpoints(source, tmp_path):
    run_dir = tmp_path / "run"
    config = configured(run_dir, source / "checkpoints" / "step_20")
    folder = open_run(config, restarted=False)
    assert folder.start(config, 0)[0].name == "step_20"
    assert folder.start(config, 1)[0].name == "step_20"
    save(run_dir, 25)
    assert folder.start(config, 1)[0].name == "step_25"


def test_restarted_job_prefers_what_it_has_saved_over_what_it_began_with(source, tmp_path):
    run_dir = tmp_path / "run"
    config = configured(run_dir, source / "checkpoints" / "step_20")
    assert start(config) == "step_20"
    assert start(config, restarted=True) == "step_20"
    save(run_dir, 25)
    assert start(config, restarted=True) == "step_25"


@pytest.mark.parametrize("inside", [True, False])
def test_restarted_job_no_longer_needs_the_checkpoint_that_it_began_with(source, tmp_path, inside):
    run_dir = source if inside else tmp_path / "run"
    config = configured(run_dir, source / "checkpoints" / "step_30")
    assert start(config) == "step_30"
    save(run_dir, 40)
    assert start(config, restarted=True) == "step_40"
    damage(source / "checkpoints" / "step_30")
    assert start(config, restarted=True) == "step_40"


def refused(config, *words, **options):
    with pytest.raises(ConfigError) as caught:
        start(config, **options)
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize("name", ["source/checkpoints/step_21", "sauce", "source/checkpoints", "source/config.yaml", "atuo"])
def test_misspelled_path_is_refused(source, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    refused(configured(tmp_path / "run", name), repr(name), "checkpoints/step_N", "auto, never")
    assert not (tmp_path / "run").exists()


def test_damaged_checkpoint_is_refused_when_it_is_named(source, tmp_path):
    damage(source / "checkpoints" / "step_20")
    refused(configured(tmp_path / "run", source / "checkpoints" / "step_20"), "can't be read", "learner-a.bin is damaged")


def test_run_whose_newest_checkpoint_is_damaged_starts_from_the_one_before(source, tmp_path):
    damage(source / "checkpoints" / "step_30")
    assert start(configured(tmp_path / "run", source)) == "step_20"


def test_checkpoint_of_another_configuration_is_refused(source, tmp_path):
    refused(configured(tmp_path / "run", source / "checkpoints" / "step_20", seed=1), "another configuration", "config.yaml")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("run_dir", ["source", "{absolute}/source"])
@pytest.mark.parametrize("resume", ["source/checkpoints/step_{}", "{absolute}/source/checkpoints/step_{}"])
def test_checkpoint_of_the_same_run_must_be_its_newest(source, tmp_path, monkeypatch, run_dir, resume):
    monkeypatch.chdir(tmp_path)
    run_dir, resume = run_dir.replace("{absolute}", str(tmp_path)), resume.replace("{absolute}", str(tmp_path))
    assert start(configured(run_dir, resume.format(30))) == "step_30"
    refused(configured(run_dir, resume.format(20)), "step_30", "another run.dir")


@pytest.mark.parametrize(("how", "options"), [("auto", {}), ("default", {"restarted": True}), ("default", {"resume_from": "."})])
def test_configurations_are_not_mixed_in_one_folder(source, how, options):
    refused(configured(source, how, seed=1), "another configuration", "run.dir", **options)
    assert (source / "config.yaml").read_text() == ""


def test_what_may_change_between_attempts_is_no_other_configuration(source):
    config = configured(source, "auto")
    config = replace(config, timeouts=replace(config.timeouts, step_s=1.0), budget=replace(config.budget, env_steps=5))
    assert start(config) == "step_30"


def test_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    refused(configured(tmp_path / "file" / "run"), "can't be written", "choose another folder")


def test_abandoned_folder_is_as_empty_as_it_was(tmp_path, source):
    for folder in (tmp_path / "new", source):
        before = sorted(folder.rglob("*"))
        opened = open_run(configured(folder, resume="auto"), restarted=False)
        assert (folder / "config.yaml").read_text()
        opened.abandon()
        assert folder.exists() == bool(before)
        assert set(before) <= set(folder.rglob("*"))


def test_abandoned_folder_keeps_what_came_there_meanwhile(tmp_path):
    opened = open_run(configured(tmp_path / "new"), restarted=False)
    (tmp_path / "new" / "thesis.tex").write_text("mine")
    opened.abandon()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["thesis.tex"]
