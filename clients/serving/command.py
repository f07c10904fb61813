"""The commands `serve` and `api-keys` of a platform."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

from clients.options import Parser, add_place, check_id
from crossrec_model.errors import ConfigError

PROGRAM: Final = "python -m clients.platform"
_EXTRA: Final = 'the service needs more packages; install them: pip install "crossrec[serve]"'


def serve(arguments: Sequence[str]) -> int:
    """Serve recommendations until a signal ends it; 128 + its number."""
    parser = Parser(
        prog=f"{PROGRAM} serve", description="Serve recommendations over gRPC and HTTP."
    )
    add = parser.add_argument
    add_place(parser)
    add("--host", default="127.0.0.1", help="address to serve on (default %(default)s)")
    add("--grpc-port", type=int, default=50051, help="0: any free one (default %(default)s)")
    add("--http-port", type=int, default=8080, help="0: any free one (default %(default)s)")
    add("--tls-cert", type=Path, metavar="PEM", help="certificate chain; needed beyond loopback")
    add("--tls-key", type=Path, metavar="PEM", help="its private key")
    add("--require-keys", action="store_true", help="ask for API keys on loopback too")
    add("--rate", type=float, default=1000.0, help="calls a second of one caller (%(default)g)")
    add("--burst", type=float, default=2000.0, help="calls at once of one caller (%(default)g)")
    add("--log-format", choices=("text", "json"), default="json", help="(default %(default)s)")
    add("--log-calls", action="store_true", help="a line for every call, not only refused ones")
    options = parser.parse_args(arguments)
    check_id(options.id)
    # Calls are answered one at a time: a pool of threads for small products would only spin.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        from clients.serving.process import ServeSettings
        from clients.serving.process import serve as run
    except ModuleNotFoundError as error:
        raise ConfigError(f"{_EXTRA} ({error.name} is missing)") from None
    from clients.state import PlatformFolder

    names = (
        *("host", "grpc_port", "http_port", "tls_cert", "tls_key", "require_keys"),
        *("rate", "burst", "log_format", "log_calls"),
    )
    settings = ServeSettings(
        platform=options.id,
        folder=PlatformFolder(options.state / options.id),
        **{name: getattr(options, name) for name in names},
    )
    number = run(settings, partial(print, flush=True))
    print("stopped; every acknowledged event is on the disk", flush=True)
    return 128 + number


def api_keys(arguments: Sequence[str]) -> int:
    """Make, list and revoke API keys."""
    parser = Parser(
        prog=f"{PROGRAM} api-keys",
        description="Keys that callers of the service show. A key is printed once, when it is made.",
    )
    add = parser.add_argument
    add("action", choices=("make", "revoke", "list"))
    add("name", nargs="?", help="whose key, in lower-case letters, digits and dashes")
    add_place(parser)
    options = parser.parse_args(arguments)
    check_id(options.id)
    if (options.name is None) != (options.action == "list"):
        raise ConfigError("make and revoke take a name, list takes none; see --help")
    from clients.serving.access import make_key, read_keys, revoke_key

    folder: Path = options.state / options.id
    if options.action == "make":
        print(make_key(folder, options.name, datetime.now(UTC)))
    elif options.action == "revoke":
        revoke_key(folder, options.name)
        print(f"key {options.name} is revoked; a running service refuses it from now on")
    else:
        for name, kept in sorted(read_keys(folder).items()):
            print(f"{name}  made {kept.made}")
    return 0
