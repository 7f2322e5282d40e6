"""The server's connections, watched over: what its settings do not bound.

The server ends an HTTP/1.1 connection that sends no complete header in time. It lets others be: one
that sends nothing, half an HTTP/2 preface, or HTTP/2 without requests; and it keeps answers that a
client does not take, with a flow-control window of nothing, for ever. As many connections as it
accepts (`max_connections`) would then keep everybody else out, and as many answers fill the memory.

So every connection of this process is looked at now and then, by its socket: one without a request
for too long is cut off, sooner when places are few; when too much waits for clients to take it,
those that took the least of it are; and at once one that begins requests only to break them off,
or so many that it must have given up earlier ones, or that sends much which belongs to none. Bodies
that come a few bytes at a time are read slowly. An address whose connections flood again and again
opens no new one for a while.
"""

import asyncio
import logging
import resource
from collections.abc import Awaitable, Iterable, Iterator, MutableMapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from time import monotonic, process_time, thread_time
from typing import Any, Final

from starlette.types import Send

from app.api import sockets
from app.api.bans import MAX_FLOODS, Address, Bans, filter_program
from app.api.sockets import Accepted, Peer
from app.api.unasked import MAX_UNASKED_BYTES, Unasked

_log = logging.getLogger(__name__)

CHECK_INTERVAL_S: Final = 2.0
# While the process is busy it looks sooner for what comes and reaches no request, for a small part
# of the time at most.
_LOOK_INTERVAL_S: Final = 0.05
_BUSY_LOOK_INTERVAL_S: Final = 0.02
_BREATH_S: Final = 0.002
_BUSY_PART: Final = 0.25
_LOOKING_PART: Final = 0.01
# Without a request while places are few.
CROWDED_IDLE_S: Final = 1.0
_CROWDED_PART: Final = 0.75
MAX_UNTAKEN_BYTES: Final = 64 << 20
# On one connection of HTTP/2. Each takes its turn on the loop when it begins and when it ends: for
# so long one hostile connection can hold up the others. Clients wait with what is beyond it.
STREAMS_AT_ONCE: Final = 100
# What it may send ahead of what is read of it, in bodies: the server keeps as much for each.
WINDOW_BYTES: Final = 4 << 20
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

    `on_disk` of them wait for their entries to be durable. `small_parts` were read in the window
    that is open. `kept_bytes` of answers are made, but not handed to the server yet,
    `answered_bytes` were handed to the server to be sent, `taken_bytes` are at the client.
    `overdue_bytes` belong to no request, by the last look.
    """

    since: float
    in_progress: int = 0
    on_disk: int = 0
    requests: int = 0
    broken_off: int = 0
    small_parts: int = 0
    is_cut: bool = False
    has_flooded: bool = False
    kept_bytes: int = 0
    answered_bytes: int = 0
    taken_bytes: int = 0
    unasked: Unasked = field(default_factory=Unasked)
    overdue_bytes: int = 0

    def unused_s(self, now: float) -> float:
        """For how long it has had no request in progress."""
        return 0.0 if self.in_progress else now - self.since

    @property
    def untaken_bytes(self) -> int:
        """How much of its answers waits for the client. What else was sent makes it less."""
        return self.kept_bytes + max(0, self.answered_bytes - self.taken_bytes)

    def taken(self, size_bytes: int, now: float) -> None:
        """Note how much the client has; a slow one is not an idle one."""
        if size_bytes > self.taken_bytes and self.untaken_bytes:
            self.since = now
        self.taken_bytes = size_bytes


class _OnDisk:
    """Counts one request more that waits for its entries' durability; a generator costs more."""

    __slots__ = ("_use",)

    def __init__(self, use: _Use) -> None:
        self._use = use

    def __enter__(self) -> None:
        self._use.on_disk += 1

    def __exit__(self, *_: object) -> None:
        self._use.on_disk -= 1


_NOT_WATCHED: Final = nullcontext()


class Connections:
    """Knows which connections are used, and cuts off those that are only in the way."""

    def __init__(
        self,
        limit: int,
        first_request_s: float,
        idle_s: float,
        ban_s: float = 0,
        max_untaken_bytes: int = MAX_UNTAKEN_BYTES,
    ) -> None:
        self._limit = limit
        self._first_request_s = first_request_s
        self._idle_s = idle_s
        self._max_untaken_bytes = max_untaken_bytes
        self._accepted = Accepted()
        self._uses: dict[Peer, _Use] = {}
        # Since the last check.
        self._answered_bytes = 0
        self._cut_at_once = 0
        self._looked = monotonic()
        # Those with small parts in the window that is open, whose end the event tells.
        self._paced: dict[Peer, _Use] = {}
        self._window: asyncio.Event | None = None
        self._bans = Bans(ban_s)
        # As the kernel knows them, and whether it lately refused to.
        self._banned: frozenset[Address] = frozenset()
        self._unfiltered = False

    def began(self, peer: Peer) -> None:
        """A request of this client has begun.

        So many that some must have been reset since (CVE-2023-44487) are the last that it sends.
        """
        use = self._uses.get(peer)
        if use is None:
            use = self._uses[peer] = _Use(monotonic())
        use.in_progress += 1
        use.requests += 1
        use.unasked.request()
        if use.in_progress > MAX_IN_PROGRESS and not use.is_cut:
            self._cut(peer, use)
            # A disk may be slower than an honest client is patient.
            if use.on_disk < use.in_progress // 2:
                self._flooded(peer, use)

    def waiting_for_disk(self, peer: Peer) -> AbstractContextManager[None]:
        """What a request of this client waits for meanwhile is its entries' durability."""
        use = self._uses.get(peer)
        return _NOT_WATCHED if use is None else _OnDisk(use)

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

    def keeps(self, peer: Peer, size_bytes: int) -> None:
        """So much more of this client's answers, or less, waits to be handed to the server."""
        use = self._uses.get(peer)
        if use is not None:
            use.kept_bytes += size_bytes

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
        if use.broken_off > MAX_BROKEN_OFF:
            if not use.is_cut:
                self._cut(peer, use)
            self._flooded(peer, use)

    def arrived(self, peer: Peer, size_bytes: int, *, last: bool) -> Awaitable[bool] | None:
        """A part of a body of this client's was read.

        What to wait for before more of it is, where it must be waited for: whether the connection
        is still there. Small parts are read no faster than is borne. What comes meanwhile waits in
        the server, which ends a connection of too many such parts but hands out all that it has of
        them.
        """
        use = self._uses.get(peer)
        if use is None:
            return None
        use.unasked.part(size_bytes)
        if last or not peer[1] or not 0 < size_bytes < SMALL_PART_BYTES:
            return None
        return self._pace(peer, use)

    async def _pace(self, peer: Peer, use: _Use) -> bool:
        if self._window is None:
            self._window = asyncio.Event()
            loop = asyncio.get_running_loop()
            loop.call_later(_SMALL_PARTS_WINDOW_S, self._end_window, self._window)
        self._paced[peer] = use
        use.small_parts += 1
        if use.small_parts > MAX_SMALL_PARTS:
            await self._window.wait()
        return not use.is_cut

    def left_unread(self, peer: Peer, size_bytes: int = WINDOW_BYTES) -> None:
        """A request of this client was answered without the rest of its body.

        So much of it may still come: over HTTP/2 no more than the window that it has.
        """
        use = self._uses.get(peer)
        if use is not None:
            use.unasked.unread(size_bytes)

    def _end_window(self, window: asyncio.Event) -> None:
        waiting = {peer for peer, use in self._paced.items() if use.small_parts > MAX_SMALL_PARTS}
        gone = waiting - self._accepted.by_peer().keys() if waiting else set()
        for peer, use in self._paced.items():
            use.small_parts = 0
            use.is_cut |= peer in gone
        self._paced = {}
        self._window = None
        window.set()

    def _cut(self, peer: Peer, use: _Use) -> None:
        """Cut this connection off at once, unless a server or a proxy shows several as one."""
        if not peer[1]:
            return
        use.is_cut = True
        self._cut_at_once += 1
        descriptor = self._accepted.by_peer().get(peer)
        if descriptor is not None:
            sockets.shut_down(descriptor, peer)

    def _flooded(self, peer: Peer, use: _Use, floods: int = 1) -> None:
        """Count this connection, once, against its address."""
        if peer[1] and not use.has_flooded:
            use.has_flooded = True
            self._bans.count(peer[0], monotonic(), floods)
            self._ban(monotonic())

    def _ban(self, now: float) -> None:
        """Tell the kernel who is banned, where that has changed."""
        banned = self._bans.banned(now)
        if banned == self._banned:
            return
        try:
            sockets.filter_attempts(filter_program(banned))
        except OSError as error:
            if not self._unfiltered:
                _log.warning(
                    "who floods can't be kept from connecting, nor let in again: %s", error
                )
            self._unfiltered = True
            return
        for address in banned - self._banned:
            _log.warning("%s opens no new connections for a while: it floods", address)
        self._banned = banned
        self._unfiltered = False

    async def watch(self) -> None:
        """Check every now and then, for ever; look for floods sooner while the process is busy."""
        checked = woke = monotonic()
        worked = process_time()
        pause_s = _LOOK_INTERVAL_S
        while True:
            await asyncio.sleep(pause_s)
            now = monotonic()
            is_busy = process_time() - worked > _BUSY_PART * (now - woke)
            woke, worked = now, process_time()
            self._ban(now)
            pause_s = _LOOK_INTERVAL_S
            is_due = now - checked >= CHECK_INTERVAL_S
            if is_due or is_busy:
                # Requests that wait for the interpreter begin before it is judged what belongs to
                # none.
                await asyncio.sleep(_BREATH_S)
                began = thread_time()
                self.end_floods(monotonic())
                looked_s = thread_time() - began
                pause_s = max(_BUSY_LOOK_INTERVAL_S, looked_s / _LOOKING_PART)
            if is_due:
                checked = now
                self.check(now)

    def check(self, now: float) -> None:
        """Look at every connection, and cut off what is in the way. `now` is monotonic."""
        self._answered_bytes = 0
        self._ban(now)
        accepted = self._look(now)
        for use in self._uses.values():
            use.broken_off = 0
        doomed = self._unused(now, accepted)
        doomed |= self._crowding(now, accepted, len(accepted) - len(doomed))
        doomed |= self._not_taking(accepted)
        for peer in doomed:
            sockets.shut_down(accepted[peer], peer)
        count = len(doomed) + self._cut_at_once
        self._cut_at_once = 0
        if count:
            _log.info("cut off %d connections; %d are left", count, len(accepted) - len(doomed))

    def end_floods(self, now: float) -> None:
        """Cut off connections that send much which belongs to no request. `now` is monotonic.

        They keep the HTTP layer from everybody else for as long as they are let. To be asked again
        and again, each time after requests that came have had the time to begin.
        """
        for peer in self._look(now):
            use = self._uses[peer]
            # The server may hold parts of bodies that are not read yet.
            borne_bytes = MAX_UNASKED_BYTES + (WINDOW_BYTES if use.in_progress else 0)
            if use.overdue_bytes > borne_bytes and not use.is_cut:
                self._cut(peer, use)
                # Nothing of the kind comes from an honest client.
                self._flooded(peer, use, MAX_FLOODS)

    def _look(self, now: float) -> dict[Peer, int]:
        """Take in what went over each connection; their descriptors."""
        accepted = self._accepted.by_peer()
        elapsed_s = now - self._looked
        self._looked = now
        before = self._uses
        uses = self._uses = {
            peer: before.get(peer) or _Use(now) for peer in (*accepted, *self._busy())
        }
        for peer in before.keys() - uses:
            if before[peer].unasked.balance_bytes > MAX_UNASKED_BYTES:
                # Gone in the middle of it, or ended by the HTTP layer.
                self._flooded(peer, before[peer])
        for peer, descriptor in accepted.items():
            use = uses[peer]
            traffic = sockets.traffic(descriptor)
            if traffic is None:
                use.taken(use.answered_bytes, now)
            else:
                use.taken(traffic.taken_bytes, now)
                use.overdue_bytes = use.unasked.overdue_bytes(traffic.read_bytes, elapsed_s)
        return accepted

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


def peer_of(scope: MutableMapping[str, Any]) -> Peer:
    """The client of a request; the same one for all where the server does not tell."""
    client = scope.get("client") or ("", 0)
    return client[0], int(client[1])  # text, with granian
