"""Folders of results: which ones a run may write into."""

import os

import pytest
from ml_collections import ConfigDict

from staleness_grpo.config.defaults import default_config
from staleness_grpo.errors import FieldError, FlagError
from staleness_grpo.runtime.records import write_json
from tests.helpers.workdirs import checked_folder, execute


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


def test_a_wrong_value_comes_before_a_folder_with_other_results_and_after_a_missing_one(tmp_path):
    (tmp_path / "config.json").write_text('{"steps": 1}')
    validated = []

    def validate(config):
        validated.append(config.steps)
        if config.steps < 0:
            raise FieldError("steps", "give a number >= 0", config.steps)

    def call(workdir, steps):
        execute(lambda config, workdir: None, ConfigDict(dict(steps=steps)), workdir, validate)

    with pytest.raises(FieldError, match="give a number >= 0"):
        call(str(tmp_path), -1)
    with pytest.raises(FlagError, match="results of another config"):
        call(str(tmp_path), 2)
    validated.clear()
    for folder in (None, str(tmp_path / "config.json")):  # before what may be slow
        with pytest.raises(FlagError, match="^--workdir="):
            call(folder, -1)
    assert validated == []


def test_a_folder_that_is_refused_later_is_left_only_if_it_has_files(tmp_path):
    def refuse(config, workdir):
        if config.steps == 2:
            (workdir / "kept").write_text("")
        raise FieldError("steps", "give another", config.steps)

    for steps, is_left in ((1, False), (2, True)):
        config = ConfigDict(dict(steps=steps))
        folder = tmp_path / str(steps)
        with pytest.raises(FieldError):
            execute(refuse, config, str(folder))
        assert folder.exists() is is_left
    (tmp_path / "own").mkdir()  # it was there before
    with pytest.raises(FieldError):
        execute(refuse, ConfigDict(dict(steps=1)), str(tmp_path / "own"))
    assert (tmp_path / "own").exists()
