"""The platform's real command line."""

from __future__ import annotations

import sys

from clients.platform import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
