"""Freed memory is used again, so that large arrays are not mapped anew each time."""

import platform
import subprocess
import sys

import pytest

from tests.conftest import ROOT

PROGRAM = """
import resource, sys
import numpy as np
from staleness_grpo.runtime import allocator

if sys.argv[1] == "keep":
    assert allocator.keep_freed_memory()
faults = []
for _ in range(10):
    np.ones(8_000_000)  # 64 MB, 16,000 pages
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(faults[-1] - faults[1])
"""


def faults_of(how):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator is not glibc's")
def test_large_arrays_are_not_mapped_anew():
    kept, given_back = faults_of("keep"), faults_of("give back")
    # Huge pages, where a system uses them for all memory, make few faults of many.
    assert kept <= 50 and kept < given_back


def test_other_systems_are_left_alone(monkeypatch):
    from staleness_grpo.runtime import allocator

    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: pytest.fail("called"))
    assert not allocator.keep_freed_memory()
