"""Records that outlive who wrote them: what a role has found out since its last checkpoint.

A line each, appended at once, so that a killed process loses none that it has answered for; a node that crashes may lose the last ones,
which is no worse than before they were found out. Whoever reads decides what still holds: a journal knows of no history.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from marl_hpc.storage.checkpoint import write_atomically


class Journal:
    """The journal at a path, as its next writer opens it; `found` is what stands there.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "journal.jsonl"
    >>> Journal(path).append({"dice": 6})
    >>> Journal(path).found
    [{'dice': 6}]
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: list[dict[str, Any]] = []
        self.lines: list[str] = []  # since it was cut last
        if path.exists():
            for line in path.read_text(errors="replace").splitlines(keepends=True):
                try:
                    self.found.append(json.loads(line))
                except ValueError:  # its writer was killed in the middle of it
                    continue
                self.lines.append(line if line.endswith("\n") else f"{line}\n")
            write_atomically(path, "".join(self.lines))

    def append(self, record: dict[str, Any]) -> None:
        line = json.dumps(record) + "\n"
        with open(self.path, "a") as file:
            file.write(line)
        self.lines.append(line)

    def cut(self) -> None:
        """A checkpoint with all this is about to be written: drop what stood here when the one before it was, which is complete."""
        write_atomically(self.path, "".join(self.lines))
        self.lines = []
