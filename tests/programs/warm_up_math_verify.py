"""Warms up the verifier math_verify, which should print nothing.

python -m tests.programs.warm_up_math_verify
"""

from staleness_grpo.tasks.verifiers import MathVerify

if __name__ == "__main__":
    MathVerify().warm_up()
