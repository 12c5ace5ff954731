"""Runs `experiments.async_train.speed` under its own name."""

from experiments.async_train import speed

if __name__ == "__main__":
    speed.command()
