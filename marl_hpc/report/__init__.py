"""The report page: one self-contained HTML file made from a run folder's metrics and summary. Standard library only, no torch."""

from marl_hpc.report.page import render

__all__ = ["render"]
