"""Answers which learning rate is safe at which lag, from runs of ours, logs, or a probe."""
