"""A model folder on bytes and its tokenizer, which the tests of text tasks share."""

import pytest


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pytest.importorskip("tokenizers", reason="the extra hf is not installed")
    from tests.helpers import byte_model

    folder = tmp_path_factory.mktemp("bytes")
    byte_model.write(folder)
    return folder


@pytest.fixture(scope="module")
def letters(folder):
    from staleness_grpo.policy.huggingface import tokenizer

    return tokenizer.load(folder)
