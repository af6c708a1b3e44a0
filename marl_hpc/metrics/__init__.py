"""What a run measures of itself: clocks of where time goes, the metrics file, and loggers that follow it."""

from marl_hpc.metrics.clock import Clock
from marl_hpc.metrics.writer import MetricsWriter

__all__ = ["Clock", "MetricsWriter"]
