"""Contracts as functions: what an environment, an algorithm, a topology or a meta-solver has to do, for their authors' tests."""

from marl_hpc.envs.random_play import random_actions
from marl_hpc.testing.algorithms import algorithm_contract
from marl_hpc.testing.environments import ContractError, env_contract
from marl_hpc.testing.meta_solvers import meta_solver_contract
from marl_hpc.testing.topologies import topology_contract

__all__ = ["ContractError", "algorithm_contract", "env_contract", "meta_solver_contract", "random_actions", "topology_contract"]
