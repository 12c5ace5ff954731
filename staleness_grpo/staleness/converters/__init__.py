"""Converts what trainers record about staleness to traces that `lag.schedule=trace` replays."""
