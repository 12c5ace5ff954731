"""Runs `experiments.performance.accelerator` under its own name."""

from experiments.performance import accelerator

if __name__ == "__main__":
    accelerator.command()
