"""Measures the gradient bias of stale rollouts, by enumeration or from paired batches."""
