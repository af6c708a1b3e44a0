"""Weights & Biases as a follower of the metrics: offline unless the user is logged in, never a prompt or a wait for the network."""

from __future__ import annotations

import netrc
import os
from pathlib import Path
from typing import Any

from marl_hpc.config import ConfigError


class WandbLogger:
    def __init__(self, run_dir: Path, config: dict[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ConfigError(f"logger=wandb needs the package wandb ({error}); pip install 'marl_hpc[wandb]'") from error
        mode = os.environ.get("WANDB_MODE") or ("online" if _logged_in() else "offline")
        settings = wandb.Settings(silent=True, console="off", init_timeout=20, x_disable_stats=True)
        self.run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "marl_hpc"), name=run_dir.name, dir=str(run_dir), config=config, mode=mode,  # type: ignore[arg-type]
            settings=settings,
        )  # fmt: skip

    def log(self, record: dict[str, Any]) -> None:
        self.run.log({name: value for name, value in record.items() if value is not None})

    def close(self) -> None:
        self.run.finish()


def _logged_in() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False
