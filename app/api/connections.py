"""The server's connections, watched over: what its settings do not bound.

The server ends an HTTP/1.1 connection that sends no complete header in time. It lets others be: one
that sends nothing, half an HTTP/2 preface, or HTTP/2 without requests; and it keeps answers that a
client does not take, with a flow-control window of nothing, for ever. As many connections as it
accepts (`max_connections`) would then keep everybody else out, and as many answers fill the memory.

So every connection of this process is looked at now and then, by its socket: one without a request
for too long is cut off, sooner when places are few; when too much waits for clients to take it,
those that took the least of it are; and at once one that begins requests only to break them off,
or so many that it must have given up earlier ones. Bodies that come a few bytes at a time are read
slowly.
"""

import asyncio
import logging
import os
import resource
import socket
import stat
import struct
from collections.abc import Iterable, Iterator, MutableMapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, Final

from starlette.types import Send

_log = logging.getLogger(__name__)

Peer = tuple[str, int]

CHECK_INTERVAL_S: Final = 2.0
# Without a request while places are few.
CROWDED_IDLE_S: Final = 1.0
_CROWDED_PART: Final = 0.75
MAX_UNTAKEN_BYTES: Final = 64 << 20
# On one connection of HTTP/2. Each takes its turn on the loop when it begins and when it ends: for
# so long one hostile connection can hold up the others. Clients wait with what is beyond it.
STREAMS_AT_ONCE: Final = 100
# Between two checks, on one connection: an honest client that gives up as much loses little by it.
MAX_BROKEN_OFF: Final = 16
# A part of a body costs the same whatever it holds. Of those that hold less than this, so many are
# read on one connection in a window of time.
SMALL_PART_BYTES: Final = 64
MAX_SMALL_PARTS: Final = 64
_SMALL_PARTS_WINDOW_S: Final = 0.25
# Descriptors that the rest of the process needs: segments, the commitment store, Postgres.
_OTHER_DESCRIPTORS: Final = 512
_MIN_CONNECTIONS: Final = 64
# A stream that its client resets makes room for another, while its request goes on.
MAX_IN_PROGRESS: Final = STREAMS_AT_ONCE + MAX_BROKEN_OFF
# struct tcp_info (linux/tcp.h): tcpi_bytes_acked.
_ACKED: Final = struct.Struct("@Q")
_ACKED_AT: Final = 120
_TCP_INFO_BYTES: Final = 256


def max_connections(channel_capacity: int) -> int:
    """How many connections may be open: few enough for the process's file descriptors."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(256, min(channel_capacity, 4096))
    if soft == resource.RLIM_INFINITY:
        return wanted
    return max(_MIN_CONNECTIONS, min(wanted, soft - _OTHER_DESCRIPTORS))


@dataclass(slots=True)
class _Use:
    """What is known of a connection: requests in progress, and since when there are none.

    `small_parts` were read in the window that is open, whose end the event tells. `answered_bytes`
    were handed to the server to be sent, `taken_bytes` are at the client.
    """

    since: float
    in_progress: int = 0
    requests: int = 0
    broken_off: int = 0
    small_parts: int = 0
    small_parts_window: asyncio.Event | None = None
    is_cut: bool = False
    answered_bytes: int = 0
    taken_bytes: int = 0

    def unused_s(self, now: float) -> float:
        """For how long it has had no request in progress."""
        return 0.0 if self.in_progress else now - self.since

    @property
    def untaken_bytes(self) -> int:
        """How much of its answers waits for the client. What else was sent makes it less."""
        return max(0, self.answered_bytes - self.taken_bytes)

    def taken(self, size_bytes: int, now: float) -> None:
        """Note how much the client has; a slow one is not an idle one."""
        if size_bytes > self.taken_bytes and self.untaken_bytes:
            self.since = now
        self.taken_bytes = size_bytes


class Connections:
    """Knows which connections are used, and cuts off those that are only in the way."""

    def __init__(
        self,
        limit: int,
        first_request_s: float,
        idle_s: float,
        max_untaken_bytes: int = MAX_UNTAKEN_BYTES,
    ) -> None:
        self._limit = limit
        self._first_request_s = first_request_s
        self._idle_s = idle_s
        self._max_untaken_bytes = max_untaken_bytes
        self._uses: dict[Peer, _Use] = {}
        # Since the last check.
        self._answered_bytes = 0
        self._cut_at_once = 0

    def began(self, peer: Peer) -> None:
        """A request of this client has begun.

        So many that some must have been reset since (CVE-2023-44487) are the last that it sends.
        """
        use = self._uses.get(peer)
        if use is None:
            use = self._uses[peer] = _Use(monotonic())
        use.in_progress += 1
        use.requests += 1
        if use.in_progress > MAX_IN_PROGRESS and not use.is_cut:
            self._cut(peer, use)

    def is_cut(self, peer: Peer) -> bool:
        """Whether this client's connection was cut off at once: nobody waits for its answers."""
        use = self._uses.get(peer)
        return use is not None and use.is_cut

    def answered(self, peer: Peer, size_bytes: int) -> None:
        """So much of an answer goes out to this client."""
        use = self._uses.get(peer)
        if use is not None:
            use.answered_bytes += size_bytes
            self._answered_bytes += size_bytes
            if self._answered_bytes > self._max_untaken_bytes // 4:
                self.check(monotonic())

    def counting(self, peer: Peer, send: Send) -> Send:
        """`send`, with what goes out in answers counted."""

        async def counted(message: MutableMapping[str, Any]) -> None:
            await send(message)
            if body := message.get("body"):
                self.answered(peer, len(body))

        return counted

    def ended(self, peer: Peer) -> None:
        """A request of this client has ended."""
        use = self._uses.get(peer)
        if use is not None:
            use.in_progress -= 1
            use.since = monotonic()

    def broke_off(self, peer: Peer) -> None:
        """A request of this client ended before its body did."""
        use = self._uses.get(peer)
        if use is None:
            return
        use.broken_off += 1
        if use.broken_off > MAX_BROKEN_OFF and not use.is_cut:
            self._cut(peer, use)

    async def pace(self, peer: Peer) -> bool:
        """Read small parts of this client's bodies no faster than is borne: to be awaited for each.

        What comes meanwhile waits in the server, which ends a connection of too many such parts but
        hands out all that it has of them. So: whether the connection is still there.
        """
        use = self._uses.get(peer)
        if use is None or not peer[1]:
            return True
        window = use.small_parts_window
        if window is None:
            window = use.small_parts_window = asyncio.Event()
            use.small_parts = 0
            loop = asyncio.get_running_loop()
            loop.call_later(_SMALL_PARTS_WINDOW_S, self._end_window, peer, use, window)
        use.small_parts += 1
        if use.small_parts > MAX_SMALL_PARTS:
            await window.wait()
        return not use.is_cut

    def _end_window(self, peer: Peer, use: _Use, window: asyncio.Event) -> None:
        use.small_parts_window = None
        if use.small_parts > MAX_SMALL_PARTS and peer not in dict(_accepted()):
            use.is_cut = True
        window.set()

    def _cut(self, peer: Peer, use: _Use) -> None:
        """Cut this connection off at once, unless a server or a proxy shows several as one."""
        if not peer[1]:
            return
        use.is_cut = True
        self._cut_at_once += 1
        for each, descriptor in _accepted():
            if each == peer:
                _shut_down(descriptor, peer)

    async def watch(self) -> None:
        """Check every now and then, for ever."""
        while True:
            await asyncio.sleep(CHECK_INTERVAL_S)
            self.check(monotonic())

    def check(self, now: float) -> None:
        """Look at every connection, and cut off what is in the way. `now` is monotonic."""
        self._answered_bytes = 0
        accepted = dict(_accepted())
        uses = self._uses = {
            peer: self._uses.get(peer) or _Use(now) for peer in (*accepted, *self._busy())
        }
        for peer, descriptor in accepted.items():
            uses[peer].broken_off = 0
            uses[peer].taken(_taken_bytes(descriptor, uses[peer]), now)
        doomed = self._unused(now, accepted)
        doomed |= self._crowding(now, accepted, len(accepted) - len(doomed))
        doomed |= self._not_taking(accepted)
        for peer in doomed:
            _shut_down(accepted[peer], peer)
        count = len(doomed) + self._cut_at_once
        self._cut_at_once = 0
        if count:
            _log.info("cut off %d connections; %d are left", count, len(accepted) - len(doomed))

    def _busy(self) -> Iterator[Peer]:
        return (peer for peer, use in self._uses.items() if use.in_progress)

    def _unused(self, now: float, peers: Iterable[Peer]) -> set[Peer]:
        uses = self._uses
        return {
            peer
            for peer in peers
            if uses[peer].unused_s(now)
            > (self._idle_s if uses[peer].requests else self._first_request_s)
        }

    def _crowding(self, now: float, peers: Iterable[Peer], count: int) -> set[Peer]:
        excess = count - int(self._limit * _CROWDED_PART)
        if excess <= 0:
            return set()
        uses = self._uses
        idle = [peer for peer in peers if uses[peer].unused_s(now) > CROWDED_IDLE_S]
        # Those that never asked for anything go first, then those that have not for longest.
        idle.sort(key=lambda peer: (uses[peer].requests > 0, uses[peer].since))
        return set(idle[:excess])

    def _not_taking(self, peers: Iterable[Peer]) -> set[Peer]:
        total_bytes = sum(self._uses[peer].untaken_bytes for peer in peers)
        doomed: set[Peer] = set()
        for peer in sorted(peers, key=lambda peer: -self._uses[peer].untaken_bytes):
            if total_bytes <= self._max_untaken_bytes:
                break
            total_bytes -= self._uses[peer].untaken_bytes
            doomed.add(peer)
        return doomed


def _accepted() -> Iterator[tuple[Peer, int]]:
    """The TCP connections that this process has accepted, with their descriptors.

    This takes no descriptor where none is left: just then some have to be cut off.
    """
    listening: set[int] = set()
    found: list[tuple[Peer, int, int]] = []
    for descriptor in _descriptors():
        try:
            if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                continue
            with _borrowed(descriptor) as connection:
                if not _is_tcp(connection):
                    continue
                port: int = connection.getsockname()[1]
                if connection.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    listening.add(port)
                else:
                    host, peer_port = connection.getpeername()[:2]
                    found.append(((host, peer_port), port, descriptor))
        except OSError:
            continue
    return ((peer, descriptor) for peer, port, descriptor in found if port in listening)


def _descriptors() -> Iterable[int]:
    """Those of this process; where none is left to list them with, all that there may be."""
    try:
        return [int(path.name) for path in Path("/proc/self/fd").iterdir()]
    except OSError:
        return range(resource.getrlimit(resource.RLIMIT_NOFILE)[0])


@contextmanager
def _borrowed(descriptor: int) -> Iterator[socket.socket]:
    """The socket of a descriptor that the server owns, and closes when it likes."""
    connection = socket.socket(fileno=descriptor)
    try:
        yield connection
    finally:
        connection.detach()


def _is_tcp(connection: socket.socket) -> bool:
    families = {socket.AF_INET, socket.AF_INET6}
    return connection.family in families and connection.type == socket.SOCK_STREAM


def _shut_down(descriptor: int, peer: Peer) -> None:
    """Cut a connection off, where it is still the one of this descriptor."""
    with suppress(OSError), _borrowed(descriptor) as borrowed, ExitStack() as stack:
        connection = borrowed
        # The server may close it meanwhile, and get the descriptor for another.
        with suppress(OSError):
            connection = stack.enter_context(borrowed.dup())
        if connection.getpeername()[:2] == peer:
            connection.shutdown(socket.SHUT_RDWR)


def _taken_bytes(descriptor: int, use: _Use) -> int:
    """How much of what was sent the client's machine has; all, where the system does not tell."""
    try:
        with _borrowed(descriptor) as connection:
            info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    except OSError:
        return use.answered_bytes
    if len(info) < _ACKED_AT + _ACKED.size:
        return use.answered_bytes
    acked: int = _ACKED.unpack_from(info, _ACKED_AT)[0]
    return acked


def peer_of(scope: MutableMapping[str, Any]) -> Peer:
    """The client of a request; the same one for all where the server does not tell."""
    client = scope.get("client") or ("", 0)
    return client[0], int(client[1])  # text, with granian
