"""What we rely on in torch's RPC, asked of the torch that is installed."""

import sys

from rigs import program


def test_installed_torch_passes_the_rpc_self_test(tmp_path):
    text = program.run([sys.executable, "-m", "marl_hpc.comm.self_test"], cwd=tmp_path)
    assert "7 of 7" in text
    assert "FAIL" not in text
