"""Counts the cores that this process may use, and pins processes to them where systems can."""

import os


def usable_cores() -> list[int]:
    """Returns the numbers of the cores that this process may use.

    On a system without such numbers, such as macOS, these are the numbers of all cores.
    """
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def pin_to(core: int) -> None:
    """Makes the system run this process on one core only. On macOS this function does nothing."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
