"""Freed memory is used again, so that large arrays are not mapped anew each time."""

import platform
import subprocess
import sys

import pytest

from tests.conftest import ROOT

# XLA allocates in threads. By default these have arenas of their own, of at most 64 MB.
PROGRAM = """
import ctypes, resource, sys, threading
from staleness_grpo.runtime import allocator

if sys.argv[1] == "keep":
    assert allocator.keep_freed_memory()
libc, faults = ctypes.CDLL(None), []
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]

def allocate():
    for _ in range(10):
        memory = libc.malloc(ctypes.c_size_t(100_000_000))
        ctypes.memset(memory, 1, 100_000_000)  # 24,000 pages
        libc.free(memory)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)

thread = threading.Thread(target=allocate)
thread.start()
thread.join()
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
def test_large_arrays_of_a_thread_are_not_mapped_anew():
    kept, given_back = faults_of("keep"), faults_of("give back")
    # Huge pages, where a system uses them for all memory, make few faults of many.
    assert kept <= 50 and kept < given_back


def test_other_systems_are_left_alone(monkeypatch):
    from staleness_grpo.runtime import allocator

    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: pytest.fail("called"))
    assert not allocator.keep_freed_memory()
