"""Measures by how many bytes the memory of the host grows while a model folder is loaded.

    python -m tests.programs.memory_of_loading FOLDER SMALL_FOLDER

SMALL_FOLDER is loaded first. What the first load brings in once is no part of the peak then. Needs
Linux, for /proc/self/status.
"""

import pathlib
import re
import sys

from staleness_grpo.policy import huggingface


def memory(field: str) -> int:
    """Returns a field of /proc/self/status in bytes.

    The peak of getrusage is no use here: it is the parent's, if that was higher.
    """
    status = pathlib.Path("/proc/self/status").read_text()
    match = re.search(rf"{field}:\s+(\d+) kB", status)
    assert match, f"/proc/self/status has no {field}"
    return 1024 * int(match[1])


def main(folder: str, small_folder: str) -> None:
    """Runs the program."""
    huggingface.load(small_folder)
    before = memory("VmRSS")
    huggingface.load(folder)
    print(memory("VmHWM") - before)


if __name__ == "__main__":
    main(*sys.argv[1:])
