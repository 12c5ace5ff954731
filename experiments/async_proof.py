"""Runs `experiments.async_train.proof` under its own name."""

from experiments.async_train import proof

if __name__ == "__main__":
    proof.command()
