"""Reads what trainers log of a run: reward, learning rate, norms, clip fraction, lag, ratios."""

from staleness_grpo.logs.formats import FORMATS, SIGNALS
from staleness_grpo.logs.history import History, read

__all__ = ["FORMATS", "SIGNALS", "History", "read"]
