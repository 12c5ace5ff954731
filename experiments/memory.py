"""Runs `experiments.performance.memory` under its own name."""

from experiments.performance import memory

if __name__ == "__main__":
    memory.command()
