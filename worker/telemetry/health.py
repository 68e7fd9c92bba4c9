"""`worker health`: asks the worker of the same settings whether it is live."""

from __future__ import annotations

import json
from contextlib import closing
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from typing import Final

from worker.addresses import host_and_port
from worker.errors import ConfigurationError

OFF: Final = "off"
_SECONDS: Final = 5.0
# An address to listen on that means all of the host's, and one of these.
_ANY: Final = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 - not listened on


def health(listen: str) -> int:
    """Print what a worker that listens there says of itself; returns the exit code, 1 if not live.

    Raises:
        ConfigurationError: it does not listen.

    """
    if listen == OFF:
        raise ConfigurationError("run.listen is off", "set it to host:port")
    host, port = host_and_port(listen)
    try:
        with closing(HTTPConnection(_ANY.get(host, host), port, _SECONDS)) as connection:
            connection.request("GET", "/healthz")
            answer = connection.getresponse()
            reason = json.loads(answer.read())["reason"]
    except (OSError, HTTPException, ValueError, KeyError, TypeError):
        print(f"no worker answers at {listen}")
        return 1
    print(reason or "live")
    return int(answer.status != HTTPStatus.OK)
