"""Tests which law the collapse time follows, and predicts the boundary of held-out settings."""
