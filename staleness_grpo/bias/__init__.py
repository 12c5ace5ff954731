"""Exact gradient bias of stale rollouts, by enumeration."""
