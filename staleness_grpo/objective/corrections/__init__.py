"""Holds published corrections for stale rollouts: functions of a TokenBatch, by name."""
