"""Which torch versions do what is needed of RPC: `marl_hpc.comm.self_test` with each, in an environment of its own.

Only torch itself, and the one CUDA library that newer ones did without, are installed anew; all else is taken from the environment
that runs this.

python benchmarks/torch_range.py [VERSION …]        -> benchmarks/results/rpc_self_test.json
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent
VERSIONS = ["2.11.0", "2.12.1", "2.13.0", "2.14.0", "2.15.0"]


def self_test(version: str) -> dict[str, object]:
    """{torch: its own version, passed, failed} or {error}."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder) / "bin" / "python"
        install = [python, "-m", "pip", "install", "-q", "--no-deps", f"torch=={version}", "nvidia-curand"]
        installed = subprocess.run(install, capture_output=True, text=True)
        if installed.returncode:
            return {"error": f"not installed: {installed.stderr.strip().splitlines()[-1]}"}
        site = next(Path(folder).glob("lib/python*/site-packages"))
        (site / "zz_shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
        sites = (site, Path(sysconfig.get_path("purelib")))
        libraries = ":".join(str(path) for place in sites for path in sorted(place.glob("nvidia/*/lib")))
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "LD_LIBRARY_PATH": libraries}
        told = subprocess.run([python, "-c", "import torch; print(torch.__version__)"], capture_output=True, text=True, env=env)
        if told.returncode:
            return {"error": f"not imported: {told.stderr.strip().splitlines()[-1]}"}
        run = subprocess.run([python, "-m", "marl_hpc.comm.self_test"], capture_output=True, text=True, env=env, timeout=300)
        lines = run.stdout.strip().splitlines()
        return {"torch": told.stdout.strip(), "exit": run.returncode, "lines": lines}


def main() -> None:
    results = {}
    for version in sys.argv[1:] or VERSIONS:
        results[version] = self_test(version)
        print(version, results[version], flush=True)
    record = {
        "command": " ".join(["python benchmarks/torch_range.py", *sys.argv[1:]]), "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}", "versions": results,
    }  # fmt: skip
    (ROOT / "benchmarks" / "results" / "rpc_self_test.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
