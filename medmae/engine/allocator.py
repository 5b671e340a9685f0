"""Keep freed memory in the process while training on a CPU.

By default glibc gives every block of more than 32 MB back to the system when it is freed and asks for it again a
moment later. The system hands it out page by page, zeroed, each page with a fault. A training step frees and asks
for the same gigabytes every time. What that costs differs much between machines: from a few percent to half of the
step. Three settings of ``mallopt`` stop it, from inside the running process, so no environment variable has to be
set and nothing is started again. The process keeps the memory of its largest step until it ends, which is what it would
need next anyway.

It is for training processes only: a short command gains nothing from it, and loader workers should give memory back.
"""

from __future__ import annotations

import ctypes
import os
import sys
from functools import lru_cache

TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3  # numbers of the settings in <malloc.h>
LARGEST = 1 << 30  # bytes; blocks above it are still given back at once
PAD = 64 << 20  # bytes asked for beyond what is needed, so that the heap grows in few steps

CHOSEN_BY_USER = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_MAX_")
OTHER_ALLOCATORS = ("jemalloc", "tcmalloc", "mimalloc")


@lru_cache(maxsize=1)
def keep_freed_memory() -> str:
    """Tell glibc to keep what is freed; one line that says what was done, for the log.

    Nothing is changed where the C library is not glibc, where another allocator is preloaded, or where the user has
    set the allocator's environment variables.
    """
    chosen = [name for name in CHOSEN_BY_USER if name in os.environ]
    if chosen or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return f"allocator: as set by {', '.join(chosen) or 'GLIBC_TUNABLES'}"
    preloaded = [name for name in OTHER_ALLOCATORS if name in os.environ.get("LD_PRELOAD", "")]
    if preloaded:
        return f"allocator: {preloaded[0]}"
    if not sys.platform.startswith("linux"):
        return "allocator: the system's own"
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018 - musl has mallopt too, with no effect
        mallopt = library.mallopt
    except (OSError, AttributeError):
        return "allocator: the system's own"
    mallopt.argtypes, mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    done = mallopt(MMAP_THRESHOLD, LARGEST) and mallopt(TRIM_THRESHOLD, -1) and mallopt(TOP_PAD, PAD)
    return "allocator: glibc, keeps freed memory" if done else "allocator: glibc, refused to keep freed memory"
