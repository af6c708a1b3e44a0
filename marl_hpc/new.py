"""`marl-hpc new`: a file to start from, which works as it is."""

from __future__ import annotations

from pathlib import Path

from marl_hpc.config import ConfigError

TEMPLATES = Path(__file__).parent / "templates"


def new(arguments: list[str]) -> str:
    """Write NAME.py from the template of a kind into the working folder; returns what to do with it."""
    kinds = sorted(path.name.partition(".")[0] for path in TEMPLATES.glob("*.txt"))
    if len(arguments) != 2 or arguments[0] not in kinds:
        raise ConfigError(f"expected: marl-hpc new {'|'.join(kinds)} NAME; got {' '.join(arguments) or 'nothing'}")
    kind, name = arguments
    if not name.isidentifier():
        raise ConfigError(f"{name!r} can't be a module's name; use letters, digits and underscores, for example my_{kind}")
    path = Path(f"{name}.py")
    if path.exists():
        raise ConfigError(f"{path} is there already; choose another name")
    text = (TEMPLATES / f"{kind}.py.txt").read_text().replace("NAME", name)
    path.write_text(text)
    commands = [line.strip() for line in text.split('"""')[1].splitlines() if line.startswith("    ")]
    return "\n".join([f"wrote {path}", *(f"  {command}" for command in commands)])
