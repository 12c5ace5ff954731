"""Checks a workdir as a command does, before and after it has checked its config."""

from experiments.common.workdir import check_folder, check_same_config


def checked_folder(workdir, config, **options):
    """Returns the folder, if a command with this config may write into it. Raises FlagError."""
    folder = check_folder(workdir)
    check_same_config(workdir, config, **options)
    return folder
