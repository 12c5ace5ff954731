"""staleness_grpo: how stale may rollouts be, at what learning rate, before GRPO is biased or collapses?"""

__version__ = "0.1.0"
