"""Makes the process keep the memory that it has freed, so that it is not mapped anew each step."""

import ctypes
import platform

# Parameters of glibc's mallopt, from its header malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
TRIM_BYTES = 2**31 - 1  # the largest int: free memory above it is given back


def keep_freed_memory() -> bool:
    """Makes glibc's allocator reuse the memory of large arrays. Returns whether it does.

    A program of XLA on the CPU allocates its temporary arrays in each call. By default, glibc gives
    such memory back to the system after the call, and the next call touches it page by page for the
    first time (docs/log/2026-11-30-page-faults-of-a-step.md). The process then holds more memory
    than it uses: free memory at the end of the heap up to 2 GB, and all that lies between pieces in
    use.

    All threads then share one arena. Where several of them allocate at the same time, as in
    compilation, they wait for each other (docs/log/2026-11-30-one-arena.md).

    Call this function before other threads start. It has no effect on other systems than Linux
    with glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # Only the main arena can grow without limit, so all threads use it.
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, TRIM_BYTES), (M_ARENA_MAX, 1))
    return all([mallopt(parameter, value) == 1 for parameter, value in settings])
