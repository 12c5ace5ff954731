"""A model folder on bytes and its tokenizer, which the tests of text tasks share."""

import pytest


@pytest.fixture(scope="module")
def folder(byte_folder):
    return byte_folder


@pytest.fixture(scope="module")
def letters(folder):
    from staleness_grpo.policy.huggingface import tokenizer

    return tokenizer.load(folder)
