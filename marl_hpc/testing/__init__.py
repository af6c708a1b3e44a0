"""Contracts as functions: what an environment, an algorithm or a topology has to do to work here. For the tests of those who write one."""

from marl_hpc.testing.algorithms import algorithm_contract
from marl_hpc.testing.environments import ContractError, env_contract, random_actions
from marl_hpc.testing.topologies import topology_contract

__all__ = ["ContractError", "algorithm_contract", "env_contract", "random_actions", "topology_contract"]
