"""Checks a workdir as a command does, and runs a command on one."""

from experiments.common import cli
from experiments.common.workdir import check_folder, check_same_config


def checked_folder(workdir, config, **options):
    """Returns the folder, if a command with this config may write into it. Raises FlagError."""
    folder = check_folder(workdir)
    check_same_config(workdir, config, **options)
    return folder


def execute(main, config, workdir, validate=lambda config: None):
    """Runs a command that draws nothing, as from the command line."""
    cli.execute(main, cli.draw_nothing, config, workdir, validate)
