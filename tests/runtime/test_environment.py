"""The description of the environment needs no git."""

from staleness_grpo.runtime.environment import describe_environment


def test_without_git_the_commit_is_unknown(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert describe_environment()["commit"] is None
