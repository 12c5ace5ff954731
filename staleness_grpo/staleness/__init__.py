"""Deterministic rollout lag: schedules and the host-side ring buffer."""
