"""`worker health`: asks the worker that has the same settings whether it is live."""

from __future__ import annotations

import json
from contextlib import closing
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from typing import Final

from worker.addresses import host_and_port
from worker.errors import ConfigurationError
from worker.terminal.sentences import show

OFF: Final = "off"
_SECONDS: Final = 5.0
# An address that means all addresses of a host can be listened on, but not asked: each has one that
# can stand for it.
_ANY: Final = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 - nothing listens on it here


def health(listen: str) -> int:
    """Print whether the worker that listens at host:port is live, or why not.

    Returns the exit code: 0 where it is live, 1 where it is not or does not answer.

    Raises:
        ConfigurationError: `listen` is "off", so there is nothing to ask.

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
        show(f"no worker answers at {listen}")
        return 1
    show(reason or "live")
    return int(answer.status != HTTPStatus.OK)
