"""Deterministic lag of rollouts: schedules, recorded traces, and the ring buffer on the host."""
