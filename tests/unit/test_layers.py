"""Who may import what, read from the source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import marl_hpc

PACKAGE = Path(marl_hpc.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))


def imported(path):
    """Every module that a file imports, anywhere in it; `from a import b` counts as a and a.b."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def within(name, module):
    return name == module or name.startswith(module + ".")


def importers(module, files=FILES):
    return {path.relative_to(PACKAGE) for path in files if any(within(name, module) for name in imported(path))}


def test_only_comm_imports_torch_distributed():
    found = importers("torch.distributed")
    assert found
    assert {path.parts[0] for path in found} == {"comm"}
    attributes = {
        path.relative_to(PACKAGE).parts[0]
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and node.attr == "distributed"
        and isinstance(node.value, ast.Name)
        and node.value.id == "torch"
    }
    assert attributes <= {"comm"}


def test_no_algorithm_imports_comm_or_any_role():
    files = sorted((PACKAGE / "algorithms").rglob("*.py"))
    assert files
    for module in ("marl_hpc.comm", "marl_hpc.roles", "marl_hpc.agents", "marl_hpc.storage"):
        assert importers(module, files) == set()


def test_environments_import_neither_torch_nor_comm():
    files = sorted((PACKAGE / "envs").rglob("*.py"))
    assert files
    assert importers("torch", files) == {Path("envs/vmas.py")}  # whose environments are torch's own
    assert importers("marl_hpc.comm", files) == set()


@pytest.mark.parametrize(
    "modules",
    [
        "marl_hpc", "marl_hpc.cli, marl_hpc.job", "marl_hpc.compose, marl_hpc.roles.assign", "marl_hpc.storage.checkpoint",
        "marl_hpc.types",
    ],
)  # fmt: skip
def test_supervisors_modules_leave_torch_out(modules):
    check = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_nothing_is_left_to_be_implemented():
    found = [
        path.relative_to(PACKAGE)
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Name) and node.id in ("NotImplementedError", "NotImplemented")
    ]
    assert len(FILES) > 30
    assert found == []


def test_lazy_names_exist():
    for name in marl_hpc.__all__:
        assert getattr(marl_hpc, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        marl_hpc.nothing  # noqa: B018
