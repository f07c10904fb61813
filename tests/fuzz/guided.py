"""The second engine: libFuzzer, guided by which branches of our code an input reaches (atheris).

    python guided.py TARGET RUNS FOLDER

Only where atheris is installed. An input that shows a defect, or takes longer than 5 s, is written to
`FOLDER/TARGET`, and the exit status is not 0. Half of the inputs are changed as `mutators` does it.
"""

from __future__ import annotations

import importlib.util
import random
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Final

from watchdog import WAIT_S

#: Longest input in bytes, and the largest memory of the process in MiB.
_LONGEST: Final = 1 << 16
_MEMORY_MIB: Final = 4096


def available() -> bool:
    """Whether this engine can be used here."""
    return importlib.util.find_spec("atheris") is not None


def main(arguments: list[str]) -> None:
    """Try inputs until there were enough of them; ends the process."""
    import atheris

    with atheris.instrument_imports(include=["crossrec_model", "clients", "server"]):
        import targets

        every = {target.name: target for target in targets.all_targets()}
    name, runs, folder = arguments
    target = every[name]
    scratch = Path(tempfile.mkdtemp(prefix="crossrec-fuzz-", dir=_fast()))
    seeds, corpus, found = list(target.seeds()), scratch / "corpus", Path(folder) / name
    for place in (corpus, found):
        place.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds):
        (corpus / f"seed-{number}").write_bytes(seed)
    check = target.check(scratch)

    def try_one(data: bytes) -> None:
        targets.judge(check, bytes(data))

    def change(data: bytes, longest: int, seed: int) -> bytes:
        from mutators import mutate

        rng = random.Random(seed)
        if rng.random() < 0.5:
            return bytes(atheris.Mutate(data, longest))[:longest]
        return mutate([bytes(data), *seeds], [], target.changes, rng)[:longest]

    for seed in seeds:
        try_one(seed)
    warnings.simplefilter("error")
    options = [
        f"-runs={runs}",
        f"-timeout={WAIT_S:.0f}",
        f"-max_len={_LONGEST}",
        "-len_control=0",
        "-seed=1",
        "-verbosity=0",
        f"-rss_limit_mb={_MEMORY_MIB}",
        f"-artifact_prefix={found}/",
        str(corpus),
    ]
    atheris.Setup([sys.argv[0], *options], try_one, custom_mutator=change)
    atheris.Fuzz()


def _fast() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


if __name__ == "__main__":
    main(sys.argv[1:])
