"""Makes lag deterministic: schedules, recorded traces, and the ring buffer on the host."""
