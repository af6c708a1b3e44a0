"""A run's folder: opened by rank 0's supervisor, which also says what each generation of the run starts from. Torch-free."""

from __future__ import annotations

import shutil
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import yaml

from marl_hpc.config import Config, ConfigError, fingerprint
from marl_hpc.storage.checkpoint import Manifest, found, newest, read_manifest, write_atomically


class RunFolder(NamedTuple):
    path: Path
    resuming: bool  # go on from this run's own checkpoints
    source: tuple[Path, Manifest] | None  # a checkpoint that the user named, for a run that has none of its own
    fresh: bool  # nothing was in it

    def start(self, config: Config, generation: int) -> tuple[Path, Manifest] | None:
        """The checkpoint that a generation starts from; None for the beginning."""
        own = newest(self.path, fingerprint(config)) if generation > 0 or self.resuming else None
        return own or self.source

    def abandon(self) -> None:
        """Leave a fresh folder as empty as it was, so that a corrected command may use it."""
        if self.fresh:
            (self.path / "config.yaml").unlink(missing_ok=True)
            shutil.rmtree(self.path / "logs", ignore_errors=True)
            with suppress(OSError):  # a folder that holds something else by now stays
                self.path.rmdir()


def open_run(config: Config, *, restarted: bool, resume_from: Path | None = None) -> RunFolder:
    """Make or reopen the folder of a run and write its configuration there.

    `restarted`: a launcher starts the job again, so that what is in the folder is the job's own. `resume_from`: the folder that the
    `resume` command names. Raises ConfigError where the folder holds something else than this run, or can't be written.
    """
    run = config.run
    name = f"{config.env['name']}-{config.algorithm['name']}".replace("/", "-").replace(":", "-")
    folder = Path(run.dir or f"runs/{name}-{time.strftime('%Y%m%d-%H%M%S')}").absolute()
    mode = run.resume
    if resume_from is not None:
        mode = "auto"
    elif mode == "default":
        mode = "auto" if restarted else "never"
    source = None
    if restarted and mode != "never" and newest(folder, fingerprint(config)) is not None:
        mode = "auto"  # the checkpoint that the job began with isn't needed any more
    if mode not in ("auto", "never"):
        source = named_checkpoint(mode, config)
        inside = source[0].parent.parent == folder
        if inside and source[0] != found(folder)[0]:
            raise ConfigError(
                f"run.resume={mode!r} isn't the newest checkpoint of that run, {found(folder)[0].name}; go on from it in another run.dir, "
                "or remove the newer ones"
            )
        mode = "auto" if restarted or inside else "never"
    if mode == "never" and folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(
            f"run.dir={folder} isn't empty; choose another folder, or continue that run with run.resume=auto or `marl-hpc resume {folder}`"
        )
    if mode != "never" and newest(folder) is not None and newest(folder, fingerprint(config)) is None:
        raise ConfigError(
            f"run.dir={folder} holds checkpoints of another configuration; choose another run.dir, or undo the keys that were changed"
        )
    fresh = not folder.is_dir() or not any(folder.iterdir())
    try:
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "config.yaml", yaml.safe_dump(asdict(config), sort_keys=False))
        (folder / "summary.json").unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"run.dir={folder} can't be written: {error}; choose another folder") from error
    return RunFolder(folder, mode != "never", source, fresh)


def named_checkpoint(text: str, config: Config) -> tuple[Path, Manifest]:
    """The checkpoint at a path, or the newest of the run at it. Raises ConfigError where there is none that this run can take up."""
    path = Path(text).absolute()
    expected = f"run.resume={text!r} must be auto, never, a run's folder or one of its checkpoints (…/checkpoints/step_N)"
    try:
        start = (path, read_manifest(path)) if (path / "manifest.json").is_file() else newest(path)
    except (ValueError, OSError, TypeError) as error:
        raise ConfigError(f"{expected}; this one can't be read: {error}") from error
    if start is None:
        raise ConfigError(f"{expected}; no readable checkpoint is there")
    if start[1].fingerprint != fingerprint(config):
        raise ConfigError(
            f"run.resume={text!r} is a checkpoint of another configuration; undo the keys that were changed since ({path}'s run has them in config.yaml)"
        )
    return start
