"""Verifiers for random bytes. A worker process that judges rewards imports nothing else with them.

In a module of tests, each of these processes would import JAX.
"""


def even(response: str, reference: None) -> float:
    """Rewards random bytes by their number, and fails on some of them."""
    if "e" in response:
        raise ValueError("an e")
    return float(len(response) % 2 == 0)


def length(response: str, reference: None) -> float:
    """Rewards long responses."""
    return len(response) / 8
