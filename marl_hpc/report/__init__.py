"""placeholder"""

from pathlib import Path


def render(run_dir):
    return Path(run_dir) / "report.html"
