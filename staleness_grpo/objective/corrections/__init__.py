"""Published corrections for stale rollouts: pure functions of a TokenBatch, by family, and their registry."""
