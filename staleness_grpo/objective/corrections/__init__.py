"""Implements published corrections for stale rollouts, as functions of a TokenBatch."""
