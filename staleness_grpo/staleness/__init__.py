"""Makes lag deterministic, with schedules, recorded traces, and a ring buffer on the host."""
