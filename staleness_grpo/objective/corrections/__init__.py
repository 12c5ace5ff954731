"""Published corrections for stale rollouts: functions of a TokenBatch, and their registry."""
