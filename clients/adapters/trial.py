"""Reads Parquet files once in a process of its own, before this one touches them.

On some damaged bytes the library asks for so much memory that it ends its process, without any
exception. Run as a program: paths in on standard input, each ended by a zero byte, and such a byte out
for each that was read.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

#: Address space beside all of the machine's memory: what an allocator reserves and never uses.
_RESERVE: Final = 8 << 30


def first_broken(files: Sequence[Path]) -> Path | None:
    """Return the first file over which its reader ended, None if there is none.

    A file that can't be read for a reason that the reader names is not broken: it will name it again.
    """
    if not files:
        return None
    paths = b"".join(os.fsencode(file.absolute()) + b"\0" for file in files)
    done = subprocess.run(
        # Isolated: beside this file lie modules of ours with common names.
        [sys.executable, "-I", __file__],
        input=paths,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"RUST_BACKTRACE": "0"},
        check=False,
    )
    return None if done.returncode == 0 else files[min(len(done.stdout), len(files) - 1)]


def main() -> None:
    """Read the files named on standard input."""
    import polars as pl

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    resource.setrlimit(resource.RLIMIT_AS, (memory + _RESERVE, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for path in sys.stdin.buffer.read().split(b"\0")[:-1]:
        try:
            for _batch in pl.scan_parquet(os.fsdecode(path)).collect_batches(engine="streaming"):
                pass
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError):
            pass
        sys.stdout.buffer.write(b"\0")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
