"""`metrics.jsonl`, one JSON object a line, and the loggers that follow it. Only the lead learner writes."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from marl_hpc.metrics.wandb_logger import WandbLogger


class MetricsWriter:
    """Appends lines. Opened at a checkpoint's `learner_steps` it first drops what was written after that cut."""

    def __init__(self, run_dir: Path, learner_steps: int, logger: str, config: dict[str, Any]) -> None:
        self.path = run_dir / "metrics.jsonl"
        kept = [line for line in _complete_lines(self.path) if json.loads(line)["learner_steps"] <= learner_steps]
        # evaluations that stand there already: a resumed run that repeats one doesn't write it twice
        records = [json.loads(line) for line in kept]
        evaluations = [record for record in records if "evaluate/return_mean" in record]
        self.evaluated = {record["learner_steps"] for record in evaluations}
        self.evaluated_at = {record["env_steps"] for record in evaluations}
        self.stages = sum("population/size" in record for record in records)  # of populations, that stand there already
        aside = self.path.with_suffix(".tmp")
        aside.write_text("".join(line + "\n" for line in kept))
        os.replace(aside, self.path)
        self.file = open(self.path, "a", buffering=1)  # noqa: SIM115 (open as long as the run)
        self.wandb = WandbLogger(run_dir, config) if logger == "wandb" else None

    def write(self, time_s: float, env_steps: int, learner_steps: int, metrics: dict[str, float]) -> None:
        """Numbers that aren't finite are written as null: JSON has no NaN."""
        record = {"time_s": round(time_s, 3), "env_steps": env_steps, "learner_steps": learner_steps}
        record |= {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        self.file.write(json.dumps(record) + "\n")
        if self.wandb is not None:
            self.wandb.log(record)

    def close(self) -> None:
        self.file.close()
        if self.wandb is not None:
            self.wandb.close()


def _complete_lines(path: Path) -> list[str]:
    """Lines that a killed writer has finished."""
    if not path.exists():
        return []
    text = path.read_text()
    return [line for line in text[: text.rfind("\n") + 1].splitlines() if line]
