"""The ratio of a token is the learner's probability over the behavior policy's."""

import numpy as np

from staleness_grpo.objective.tokens import TokenBatch


def test_the_ratio_is_that_of_learner_over_behavior():
    policy, behavior = np.log([[0.5, 0.25]]), np.log([[0.25, 0.5]])
    ones = np.ones((1, 1))
    tokens = TokenBatch(policy, behavior, policy, ones, np.ones((1, 2), bool), ones)
    np.testing.assert_allclose(tokens.ratio(), [[2.0, 0.5]], rtol=1e-6)  # float32 rounds
