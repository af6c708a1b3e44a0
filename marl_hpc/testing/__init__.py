"""Contracts as functions: what an algorithm has to do to work here. For the tests of those who write one."""

from marl_hpc.testing.algorithms import algorithm_contract

__all__ = ["algorithm_contract"]
