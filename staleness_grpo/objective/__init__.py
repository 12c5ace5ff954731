"""The GRPO surrogate with an explicit behavior policy, as pure functions of arrays."""
