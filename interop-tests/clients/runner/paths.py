"""Where things lie. Nothing is written outside CACHE except below a temporary directory."""

import pathlib

CLIENTS = pathlib.Path(__file__).resolve().parent.parent
REPOSITORY = CLIENTS.parent.parent
CACHE = CLIENTS.parent / ".cache"
