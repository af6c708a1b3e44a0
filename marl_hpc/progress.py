"""What a person sees while a run goes on: one line that is rewritten on a terminal, plain lines elsewhere. Torch-free."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from marl_hpc.comm.store import AnyStore

PLAIN_EVERY_S = 10.0


class Progress:
    def __init__(self, store: AnyStore, layout: str, run_dir: Path, stream: TextIO | None = None) -> None:
        """`stream`: where to; default: standard error."""
        self.stream = sys.stderr if stream is None else stream
        self.store, self.terminal = store, self.stream.isatty()
        self.last_plain = 0.0
        self.last: Any = None
        self.faults: set[str] = set()
        self.graphs: set[str] = set()
        self.line_open = False
        self.say(f"run folder: {run_dir}\n{layout}")

    def say(self, text: str) -> None:
        """A line that stays."""
        if self.line_open:
            print(file=self.stream)
            self.line_open = False
        print(text, file=self.stream, flush=True)

    def show(self) -> None:
        """Called each second."""
        self.show_graphs()
        for key, text in self.store.scan("fault/").items():
            if key not in self.faults:
                self.faults.add(key)
                self.say(f"fault: {text}")
        record = self.store.get("progress")
        if record is None or record == self.last:
            return
        if self.terminal:
            self.last = record
            print(f"\r\x1b[K{self.format(record)[: shutil.get_terminal_size().columns - 1]}", end="", file=self.stream, flush=True)
            self.line_open = True
        elif time.monotonic() - self.last_plain > PLAIN_EVERY_S:
            self.last, self.last_plain = record, time.monotonic()
            self.say(self.format(record))

    def show_graphs(self) -> None:
        """What learners say of the graphs of networked agents, once their transports are chosen; the same after a restart isn't said again."""
        for record in self.store.scan("graph/").values():
            if record["text"] not in self.graphs:
                self.graphs.add(record["text"])
                self.say(record["text"])

    def close(self) -> None:
        self.show_graphs()  # a short run's
        record = self.store.get("progress")
        if record is not None and (record != self.last or self.terminal):
            self.say(self.format(record))

    @staticmethod
    def format(record: dict[str, Any]) -> str:
        def number(value: float | None) -> str:
            return "–" if value is None else f"{value:.2f}"

        if "nash_conv" in record:
            return f"iteration {record['updates']} of at most {record['budget']} · NashConv {record['nash_conv']:.3g}"
        left = int(record["left_s"])
        return (
            f"{100 * record['env_steps'] / record['budget']:5.1f} % · {record['env_steps']:,} env steps · {record['env_steps_per_s']:,.0f}/s · "
            f"update {record['updates']} · return {number(record['train_return'])} (evaluated {number(record['evaluate_return'])}) · "
            f"{left // 60}:{left % 60:02d} left"
        )
