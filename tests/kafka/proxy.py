"""A TCP proxy between Kafka's clients and a broker, which makes faults at an exact moment.

It reads whole frames, so that a fault strikes between two of them: a request is lost before the
broker has any of it, or the broker has written and the client never hears of it. All state belongs
to one loop in one thread; public methods may be called from any other.
"""

from __future__ import annotations

import asyncio
import enum
import socket
import struct
import threading
from collections import Counter
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Self, TypeVar

if TYPE_CHECKING:
    from asyncio import StreamReader, StreamWriter
    from collections.abc import Callable, Coroutine, Iterable

HOST = "127.0.0.1"

# How a request begins: size, key and version of the API, correlation id, length of the client id
# (-1: none); an answer: size, correlation id. The "flexible" headers of newer versions only add
# fields behind these, and keep the client id's length as it was.
REQUEST = struct.Struct(">ihhih")
ANSWER = struct.Struct(">ii")

T = TypeVar("T")


class Api(enum.IntEnum):
    """The APIs that tests name."""

    PRODUCE = 0
    FETCH = 1
    LIST_OFFSETS = 2
    METADATA = 3
    OFFSET_COMMIT = 8
    OFFSET_FETCH = 9
    FIND_COORDINATOR = 10
    JOIN_GROUP = 11
    HEARTBEAT = 12
    LEAVE_GROUP = 13
    SYNC_GROUP = 14
    SASL_HANDSHAKE = 17
    API_VERSIONS = 18
    INIT_PRODUCER_ID = 22
    ADD_PARTITIONS_TO_TXN = 24
    ADD_OFFSETS_TO_TXN = 25
    END_TXN = 26
    TXN_OFFSET_COMMIT = 28


class Moment(enum.Enum):
    """When a fault strikes, which is also a direction: the other one goes on."""

    # The proxy has the whole request, the broker nothing of it.
    BEFORE_REQUEST = enum.auto()
    # The proxy has the broker's whole answer, the client nothing of it.
    BEFORE_ANSWER = enum.auto()


@dataclass(frozen=True)
class Cut:
    """Close the connection on both sides; the frame is lost."""


@dataclass(frozen=True)
class Delay:
    """Keep the frame and all behind it for some time, then send it on."""

    seconds: float


@dataclass(frozen=True)
class Hold:
    """Keep the frame and all behind it until `Armed.release`, then send it on.

    A request is sent on even if its client has died meanwhile, as a network may do.
    """


@dataclass(frozen=True)
class Ghost:
    """Close the client's connection, and send its request on later, as a network box may do.

    That is after so many seconds or, without any, at `Armed.release`.
    """

    seconds: float | None = None


@dataclass(frozen=True)
class BlackHole:
    """Swallow the frame and all behind it; the connection stays open until `Proxy.heal`."""


# What happens to the frame in the end; without any of these it is sent on.
Outcome = Cut | Delay | Hold | Ghost | BlackHole


@dataclass(frozen=True)
class Call:
    """Call a function in a thread of its own while the frame is kept, then act, or send it on."""

    function: Callable[[], object]
    then: Outcome | None = None


Action = Outcome | Call


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What to do with which frames: after `skip` of them, `times` in a row."""

    api: Api
    moment: Moment
    action: Action
    client_id: str | None = None  # its prefix
    skip: int = 0
    times: int = 1


class Request(NamedTuple):
    api: int
    client_id: str


class Armed:
    """A fault that waits for its frames.

    `struck` is set at the first: once the frame is kept, and the function of a `Call` has returned.
    """

    def __init__(self, fault: Fault, loop: asyncio.AbstractEventLoop) -> None:
        self.struck = threading.Event()
        # Set once the broker has answered all that came on the connection of a `Ghost`.
        self.answered = threading.Event()
        self.count = 0
        self.fault = fault
        self.released = asyncio.Event()
        self._loop = loop
        self._to_skip = fault.skip
        self._to_strike = fault.times

    def release(self) -> None:
        """Send on what is held, and hold nothing any more."""
        self._loop.call_soon_threadsafe(self.released.set)

    def disarm(self) -> None:
        """Strike no more; what has been struck stays so."""
        run_on(self._loop, self._disarm())

    async def _disarm(self) -> None:
        self._to_strike = 0

    def takes(self, moment: Moment, request: Request) -> bool:
        """Return whether the fault strikes this frame, which counts as one of its frames."""
        fault = self.fault
        if (
            (moment, request.api) != (fault.moment, fault.api)
            or not request.client_id.startswith(fault.client_id or "")
            or not self._to_strike
        ):
            return False
        if self._to_skip:
            self._to_skip -= 1
            return False
        self._to_strike -= 1
        self.count += 1
        return True

    def call(self, function: Callable[[], object]) -> None:
        # Told here: the function may cut this very connection, and with it whoever waits for it.
        function()
        self.struck.set()


class CutError(Exception):
    """Ends both directions of a connection."""


@dataclass(eq=False)
class Connection:
    """What is known of one connection; directions in `silent` swallow their frames."""

    silent: set[Moment]
    task: asyncio.Task[None] = field(init=False)
    client: StreamWriter = field(init=False)
    unanswered: dict[int, Request] = field(default_factory=dict)
    client_is_gone: bool = False
    ghost: Armed | None = None

    @property
    def is_over(self) -> bool:
        # The broker answers also a client that is gone: it may learn so only later.
        return self.client_is_gone and not self.unanswered

    def request(self, frame: bytes) -> Request:
        _, api, _, correlation_id, length = REQUEST.unpack_from(frame)
        client_id = frame[REQUEST.size : REQUEST.size + max(length, 0)].decode()
        request = self.unanswered[correlation_id] = Request(api, client_id)
        return request

    def answered(self, frame: bytes) -> Request:
        _, correlation_id = ANSWER.unpack_from(frame)
        return self.unanswered.pop(correlation_id)


class Proxy:
    """Listens on one port and forwards to another, with the faults that are armed.

    Of several faults that fit a frame the one armed first strikes; the others do not count the
    frame. `seen` counts the requests received, also those that were not sent on. What goes wrong
    in the function of a `Call` is raised at the end.
    """

    def __init__(self, listen_port: int, target_port: int) -> None:
        self.seen: Counter[int] = Counter()
        self._port = listen_port
        self._target_port = target_port
        # While connections are refused: bound, but not listening, so that nobody takes the port.
        self._bound = bound_socket(listen_port)
        self._accepts = False
        self._armed: list[Armed] = []
        self._connections: list[Connection] = []
        self._black_hole = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self.accept()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._run(self._close())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def arm(self, fault: Fault) -> Armed:
        armed = Armed(fault, self._loop)
        self._run(self._arm(armed))
        return armed

    def cut_all(self) -> None:
        """Close all connections; what they keep is lost."""
        self._run(self._cut(self._connections))

    def refuse(self) -> None:
        """Close all connections and refuse new ones, as if the broker was gone."""
        self._run(self._refuse())

    def accept(self) -> None:
        """Accept connections again."""
        self._run(self._accept())

    def black_hole(self) -> None:
        """Swallow all frames of all connections, of new ones too, both ways."""
        self._run(self._swallow())

    def heal(self) -> None:
        """Close the connections that have swallowed frames, and let all others through."""
        self._run(self._heal())

    def _run(self, coroutine: Coroutine[None, None, T]) -> T:
        return run_on(self._loop, coroutine)

    # All below runs in the loop's thread.

    async def _arm(self, armed: Armed) -> None:
        self._armed.append(armed)

    async def _cut(self, connections: Iterable[Connection]) -> None:
        tasks = [connection.task for connection in connections]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _refuse(self) -> None:
        if self._accepts:
            self._accepts = False
            self._loop.remove_reader(self._bound)
            self._bound.close()
            self._bound = bound_socket(self._port)
        await self._cut(self._connections)

    async def _accept(self) -> None:
        if not self._accepts:
            self._accepts = True
            self._bound.listen()
            # Not asyncio's server, which loses connections that it accepts while it is closed.
            self._loop.add_reader(self._bound, self._welcome)

    async def _swallow(self) -> None:
        self._black_hole = True
        for connection in self._connections:
            connection.silent.update(Moment)

    async def _heal(self) -> None:
        self._black_hole = False
        await self._cut(connection for connection in self._connections if connection.silent)

    async def _close(self) -> None:
        await self._refuse()
        self._bound.close()
        await self._loop.shutdown_default_executor()
        for connection in self._connections:
            with suppress(asyncio.CancelledError):
                connection.task.result()

    def _welcome(self) -> None:
        try:
            client, _ = self._bound.accept()
        except OSError:  # It is gone already.
            return
        connection = Connection(silent=set(Moment) if self._black_hole else set())
        connection.task = self._loop.create_task(self._serve(connection, client))
        # Here and not in the task, which may be cancelled before it begins.
        connection.task.add_done_callback(lambda _: client.close())
        self._connections.append(connection)

    async def _serve(self, connection: Connection, client: socket.socket) -> None:
        with ExitStack() as stack:
            from_client, to_client = await asyncio.open_connection(sock=client)
            connection.client = to_client
            stack.callback(to_client.transport.abort)
            try:
                from_broker, to_broker = await asyncio.open_connection(HOST, self._target_port)
            except OSError:  # The broker refuses: so do we.
                return
            stack.callback(to_broker.transport.abort)
            # Nothing waits in the proxy: what was sent on before a cut has left.
            for writer in (to_client, to_broker):
                writer.transport.set_write_buffer_limits(high=0)
            try:
                async with asyncio.TaskGroup() as directions:
                    directions.create_task(self._send_requests(connection, from_client, to_broker))
                    directions.create_task(self._send_answers(connection, from_broker, to_client))
            except* CutError:
                pass

    async def _send_requests(
        self, connection: Connection, client: StreamReader, broker: StreamWriter
    ) -> None:
        while frame := await read_frame(client):
            request = connection.request(frame)
            self.seen[request.api] += 1
            await self._strike(connection, Moment.BEFORE_REQUEST, request)
            if Moment.BEFORE_REQUEST not in connection.silent:
                await write_frame(broker, frame)
        connection.client_is_gone = True
        if connection.is_over:
            broker.transport.abort()

    async def _send_answers(
        self, connection: Connection, broker: StreamReader, client: StreamWriter
    ) -> None:
        while not connection.is_over and (frame := await read_frame(broker)):
            request = connection.answered(frame)
            await self._strike(connection, Moment.BEFORE_ANSWER, request)
            if Moment.BEFORE_ANSWER not in connection.silent:
                await write_frame(client, frame)
        if connection.ghost is not None:
            connection.ghost.answered.set()
        client.transport.abort()

    async def _strike(self, connection: Connection, moment: Moment, request: Request) -> None:
        armed = next((armed for armed in self._armed if armed.takes(moment, request)), None)
        if armed is None:
            return
        outcome: Action | None = armed.fault.action
        if isinstance(outcome, Call):
            await self._loop.run_in_executor(None, armed.call, outcome.function)
            outcome = outcome.then
        armed.struck.set()
        match outcome:
            case Cut():
                raise CutError
            case Delay(seconds):
                await asyncio.sleep(seconds)
            case Hold():
                await armed.released.wait()
            case Ghost(seconds):
                connection.ghost = armed
                connection.client.transport.abort()
                await (asyncio.sleep(seconds) if seconds else armed.released.wait())
            case BlackHole():
                connection.silent.add(moment)


def run_on(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[None, None, T]) -> T:
    return asyncio.run_coroutine_threadsafe(coroutine, loop).result()


def bound_socket(port: int) -> socket.socket:
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.settimeout(0)
    bound.bind((HOST, port))
    return bound


async def read_frame(reader: StreamReader) -> bytes:
    """Return the next frame with its size, or nothing if the sender is gone."""
    try:
        size = await reader.readexactly(4)
        return size + await reader.readexactly(int.from_bytes(size))
    except (OSError, asyncio.IncompleteReadError):
        return b""


async def write_frame(writer: StreamWriter, frame: bytes) -> None:
    # If the receiver is gone, the end of what it sent tells so.
    with suppress(OSError):
        writer.write(frame)
        await writer.drain()
