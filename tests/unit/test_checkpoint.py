"""Checkpoints are complete or absent."""

import json

import pytest

from marl_hpc.storage import checkpoint
from marl_hpc.storage.checkpoint import Manifest


def manifest_of(folder, env_steps, fingerprint="f"):
    files = {path.name: checkpoint.checksum(path) for path in folder.iterdir()}
    return Manifest(
        fingerprint=fingerprint, iteration=env_steps // 10, env_steps=env_steps, agent_steps=3 * env_steps,
        learner_steps=env_steps // 10, wall_s=1.5, files=files,
    )  # fmt: skip


def save(run_dir, env_steps, fingerprint="f", keep=10):
    folder = checkpoint.begin(run_dir, env_steps)
    (folder / "learner-a.bin").write_bytes(b"learner" * env_steps)
    (folder / "parameter-0.bin").write_bytes(b"parameter")
    manifest = manifest_of(folder, env_steps, fingerprint)
    return checkpoint.complete(folder, manifest, keep), manifest


def steps(run_dir):
    return [folder.name for folder in checkpoint.found(run_dir)]


def test_completed_checkpoint_is_found_and_reads_back(tmp_path):
    folder, manifest = save(tmp_path, 30)
    assert folder == tmp_path / "checkpoints" / "step_30"
    assert checkpoint.read_manifest(folder) == manifest
    assert checkpoint.newest(tmp_path) == (folder, manifest)
    assert sorted(path.name for path in folder.iterdir()) == ["learner-a.bin", "manifest.json", "parameter-0.bin"]


def test_run_without_checkpoints_has_none(tmp_path):
    assert checkpoint.found(tmp_path) == []
    assert checkpoint.newest(tmp_path) is None


def test_checkpoint_that_was_not_completed_is_absent(tmp_path):
    save(tmp_path, 10)
    folder = checkpoint.begin(tmp_path, 20)
    (folder / "learner-a.bin").write_bytes(b"half")
    assert steps(tmp_path) == ["step_10"]
    # even when the manifest is written and only the rename is missing
    (folder / "manifest.json").write_text((tmp_path / "checkpoints/step_10/manifest.json").read_text())
    assert steps(tmp_path) == ["step_10"]
    assert checkpoint.newest(tmp_path)[1].env_steps == 10


def test_begin_clears_what_a_killed_attempt_left(tmp_path):
    (checkpoint.begin(tmp_path, 20) / "stale.bin").write_bytes(b"x")
    assert list(checkpoint.begin(tmp_path, 20).iterdir()) == []


def test_same_step_saved_again_replaces_the_old_one(tmp_path):
    save(tmp_path, 20, fingerprint="old")
    save(tmp_path, 20, fingerprint="new")
    assert steps(tmp_path) == ["step_20"]
    assert checkpoint.newest(tmp_path)[1].fingerprint == "new"


def test_newest_is_by_number_not_by_name(tmp_path):
    for env_steps in (9, 20, 100):
        save(tmp_path, env_steps)
    assert steps(tmp_path) == ["step_100", "step_20", "step_9"]
    assert checkpoint.newest(tmp_path)[1].env_steps == 100


def test_a_history_that_goes_on_from_before_a_damaged_checkpoint_replaces_it(tmp_path):
    for env_steps in (10, 20):
        save(tmp_path, env_steps, keep=2)
    damage_bytes(tmp_path / "checkpoints" / "step_20")
    save(tmp_path, 15, keep=1)
    assert steps(tmp_path) == ["step_15"]


def test_only_the_newest_are_kept(tmp_path):
    for env_steps in (10, 20, 30, 40):
        save(tmp_path, env_steps, keep=2)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step_30", "step_40"]


def damage_bytes(folder):
    path = folder / "learner-a.bin"
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(bytes(content))


def damage_length(folder):
    (folder / "learner-a.bin").write_bytes(b"learner")


def damage_absence(folder):
    (folder / "parameter-0.bin").unlink()


def damage_manifest(folder):
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text[: len(text) // 2])


def damage_format(folder):
    record = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**record, "format": 99}))


def damage_fields(folder):
    record = json.loads((folder / "manifest.json").read_text())
    del record["iteration"]
    (folder / "manifest.json").write_text(json.dumps(record))


@pytest.mark.parametrize("damage", [damage_bytes, damage_length, damage_absence, damage_manifest, damage_format, damage_fields])
def test_damaged_checkpoint_is_skipped_for_the_one_before(tmp_path, capsys, damage):
    save(tmp_path, 10)
    folder, _ = save(tmp_path, 20)
    damage(folder)
    assert checkpoint.newest(tmp_path)[1].env_steps == 10
    assert "skipping a checkpoint" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("damage", "words"),
    [(damage_bytes, "learner-a.bin is damaged"), (damage_absence, "lacks parameter-0.bin"), (damage_format, "format 99")],
)
def test_damage_is_named(tmp_path, damage, words):
    folder, _ = save(tmp_path, 20)
    damage(folder)
    with pytest.raises(ValueError, match=words):
        checkpoint.read_manifest(folder)


def test_checkpoint_of_another_configuration_is_passed_over(tmp_path):
    save(tmp_path, 10, fingerprint="mine")
    save(tmp_path, 20, fingerprint="other")
    assert checkpoint.newest(tmp_path, "mine")[1].env_steps == 10
    assert checkpoint.newest(tmp_path, "other")[1].env_steps == 20
    assert checkpoint.newest(tmp_path, "nobody's") is None


def test_atomic_write_replaces_and_leaves_nothing_beside(tmp_path):
    path = tmp_path / "summary.json"
    checkpoint.write_atomically(path, "one")
    checkpoint.write_atomically(path, "two")
    assert path.read_text() == "two"
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]


def test_checksum_is_sha_256(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert checkpoint.checksum(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
