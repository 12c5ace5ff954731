"""Runs `experiments.performance.checkpoint_overhead` under its own name."""

from experiments.performance import checkpoint_overhead

if __name__ == "__main__":
    checkpoint_overhead.command()
