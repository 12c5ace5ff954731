"""Runs `experiments.performance.benchmark` under its own name."""

from experiments.performance import benchmark

if __name__ == "__main__":
    benchmark.command()
