"""Checkpoints: complete or absent.

Every role writes its own file into `checkpoints/step_K.partial`; the manifest, with a checksum of each, comes last, and the rename to
`step_K` makes it a checkpoint. K counts environment steps. Torch-free: supervisors choose what to resume from.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a checkpoint holds: progress at its cut, and the checksum of every role's file."""

    fingerprint: str
    iteration: int
    env_steps: int
    agent_steps: int
    learner_steps: int
    wall_s: float
    files: dict[str, str]  # file name -> sha256
    format: int = FORMAT


def begin(run_dir: Path, env_steps: int) -> Path:
    """An empty folder for the roles' files."""
    folder = run_dir / "checkpoints" / f"step_{env_steps}.partial"
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    return folder


def complete(folder: Path, manifest: Manifest, keep: int) -> Path:
    """Write the manifest, make the checkpoint visible, and remove all but the newest `keep`."""
    write_atomically(folder / "manifest.json", json.dumps(asdict(manifest), indent=1))
    final = folder.with_suffix("")
    if final.exists():
        shutil.rmtree(final)
    os.rename(folder, final)
    folders = found(folder.parent.parent)
    place = folders.index(final)
    # later ones couldn't be read when this attempt began: they are of a history that was given up
    for old in [*folders[:place], *folders[place + keep :]]:
        shutil.rmtree(old)
    return final


def found(run_dir: Path) -> list[Path]:
    """Checkpoints of a run that have a manifest, newest first."""
    folders = [path.parent for path in (run_dir / "checkpoints").glob("step_*/manifest.json") if path.parent.suffix != ".partial"]
    return sorted(folders, key=lambda folder: int(folder.name.removeprefix("step_")), reverse=True)


def read_manifest(folder: Path) -> Manifest:
    """Read and verify a checkpoint. Raises ValueError naming the file that is missing, damaged or of another format."""
    record: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    if record.get("format") != FORMAT:
        raise ValueError(f"{folder} is a checkpoint of format {record.get('format')}; this version reads format {FORMAT}")
    manifest = Manifest(**record)
    for name, expected in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise ValueError(f"{folder} lacks {name}, which its manifest names")
        if checksum(path) != expected:
            raise ValueError(f"{path} is damaged: its SHA-256 isn't the manifest's")
    return manifest


def newest(run_dir: Path, fingerprint: str | None = None) -> tuple[Path, Manifest] | None:
    """The newest undamaged checkpoint, of this configuration where a fingerprint is given."""
    for folder in found(run_dir):
        try:
            manifest = read_manifest(folder)
        except (ValueError, OSError, TypeError) as error:
            print(f"skipping a checkpoint: {error}", flush=True)
            continue
        if fingerprint is None or manifest.fingerprint == fingerprint:
            return folder, manifest
    return None


def checksum(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, text: str) -> None:
    """Write aside, flush to disk, rename: readers see the old file or the whole new one."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(aside, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
