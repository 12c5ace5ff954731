"""Simulates the clock of asynchronous RL: engines, buffer, learner and weight publication."""
