"""Measures the gradient bias of stale rollouts: exactly by enumeration, or from paired batches."""
