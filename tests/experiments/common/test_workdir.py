"""Folders of results: which ones a run may write into."""

import os

import pytest

from staleness_grpo.config.defaults import default_config
from staleness_grpo.errors import FlagError
from staleness_grpo.runtime.records import write_json
from tests.helpers.workdirs import checked_folder


def test_workdir_must_be_given_and_a_folder(tmp_path):
    config = default_config()
    file = tmp_path / "file"
    file.touch()
    for workdir in (None, "", file, file / "below"):
        with pytest.raises(FlagError, match="^--workdir=.*: .*give a folder"):
            checked_folder(workdir and str(workdir), config)
    assert checked_folder(str(tmp_path / "a" / "b"), config) == tmp_path / "a" / "b"
    assert list(tmp_path.iterdir()) == [file]  # checking makes nothing


def test_unwritable_workdir_is_refused(tmp_path, monkeypatch):
    # Root may write anywhere, so the system's answer is stood in for.
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(FlagError, match=f"^--workdir=.*: {tmp_path} is not writable: give another"):
        checked_folder(str(tmp_path / "new"), default_config())


def test_workdir_of_another_config_is_refused_and_kept(tmp_path):
    config = default_config()
    write_json(tmp_path / "config.json", config.to_dict())
    before = (tmp_path / "config.json").read_bytes()
    assert checked_folder(str(tmp_path), config) == tmp_path  # its own: a resume
    config.lag.max_lag = 16
    with pytest.raises(
        FlagError, match=r"another config.*lag\.max_lag is 0 in the folder, 16 in this call"
    ) as error:
        checked_folder(str(tmp_path), config)
    assert "\n" not in str(error.value)
    with pytest.raises(FlagError, match=r"extra is absent in the folder, 3 in this call"):
        checked_folder(str(tmp_path), type(config)({"extra": 3} | default_config().to_dict()))
    assert (tmp_path / "config.json").read_bytes() == before


def test_an_unset_field_that_older_results_do_not_have_is_no_difference(tmp_path):
    config = default_config()
    older = config.to_dict()
    older["correction"] = {"name": "grpo_clip"}
    write_json(tmp_path / "config.json", older)
    assert checked_folder(str(tmp_path), config) == tmp_path
    config.correction.update({"name": "aipo", "cap": 3.0})
    with pytest.raises(
        FlagError, match=r"correction\.cap is absent in the folder, 3\.0 in this call"
    ):
        checked_folder(str(tmp_path), config)


def test_results_of_before_the_guard_are_those_of_a_guard_that_is_off(tmp_path):
    config = default_config()
    older = config.to_dict()
    del older["guard"]
    write_json(tmp_path / "config.json", older)
    assert checked_folder(str(tmp_path), config) == tmp_path
    config.guard.mode = "warn"
    with pytest.raises(FlagError, match=r"guard\.\w+ is absent in the folder"):
        checked_folder(str(tmp_path), config)
    write_json(tmp_path / "config.json", config.to_dict())
    with pytest.raises(FlagError, match=r"guard\.mode is warn in the folder, off in this call"):
        checked_folder(str(tmp_path), default_config())


@pytest.mark.parametrize("text", ["", "{", "\udcff"])
def test_workdir_with_an_unreadable_config_is_refused(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(FlagError, match="config.json cannot be read"):
        checked_folder(str(tmp_path), default_config())
