"""Attackers, each of which goes on until its process is ended.

What they send is made beforehand: made anew each time, it would cost the attacker, and so the
machine that service and clients share with it, more than the service. Nor are they as fast as they
can be: that would measure the machine alone.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import cycle
from multiprocessing.sharedctypes import Synchronized
from typing import Final, TypeVar

from hyperframe.frame import (
    ContinuationFrame,
    HeadersFrame,
    PingFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from tests.support.http_entries import MSGPACK, msgpack_entry, packed
from tests.support.raw_http import PREFACE, RawConnection, RawHttp2

PAUSE_S: Final = 0.01
SHORT_PAUSE_S: Final = 0.0005
AnyConnection = TypeVar("AnyConnection", bound=RawConnection)
BODY: Final = (("content-type", MSGPACK),)
STREAMS: Final = 100
# Of clients that are slow: so many at once, each of which sends a byte so often.
SLOW: Final = 200
SLOW_PAUSE_S: Final = 0.1


@dataclass(frozen=True)
class Target:
    """A service on loopback, where it is attacked from, and how often it let the attacker in."""

    port: int
    source: str
    connections: "Synchronized[int]"

    def http1(self) -> RawConnection:
        """A connection over HTTP/1.1."""
        return self._counted(RawConnection(self.port, source=self.source))

    def http2(self, settings: Mapping[int, int] | None = None) -> RawHttp2:
        """A connection over HTTP/2."""
        return self._counted(RawHttp2(self.port, settings, source=self.source))

    def _counted(self, connection: AnyConnection) -> AnyConnection:
        with self.connections.get_lock():
            self.connections.value += 1
        return connection


def rapid_resets(target: Target) -> None:
    """Streams that are reset at once, few enough at a time that each is taken for a request."""

    def frames(connection: RawHttp2) -> Iterable[bytes]:
        for _ in range(1000):
            stream, headers = connection.headers(more=BODY)
            yield headers + connection.reset(stream)

    send_for_ever(target, recorded(target, frames), at_once=8)


def stream_flood(target: Target) -> None:
    """More streams than there may be, left open with the beginning of a body."""

    def frames(connection: RawHttp2) -> Iterable[bytes]:
        for _ in range(256):
            stream, headers = connection.headers(more=BODY)
            yield headers + connection.data(stream, b"\x81")

    streams = b"".join(recorded(target, frames))
    while again():
        with target.http2() as attacker:
            attacker.send(streams)
            time.sleep(PAUSE_S)


def silent_connections(target: Target) -> None:
    """Hundreds of connections that say nothing."""
    while again():
        attackers = [target.http1() for _ in range(200)]
        time.sleep(0.2)
        for attacker in attackers:
            attacker.socket.close()


def pings(target: Target) -> None:
    """Frames that want an answer, which is not read."""
    flood = PingFrame(0, opaque_data=b"8 bytes.").serialize() * 10_000
    while again():
        with target.http2() as attacker:
            attacker.socket.settimeout(0.2)
            attacker.send(flood)


def no_window(target: Target) -> None:
    """Answers that are asked for and can't be sent."""
    while again():
        with target.http2({SettingsFrame.INITIAL_WINDOW_SIZE: 0}) as attacker:
            for _ in range(16):
                _, headers = attacker.headers("GET", "/healthz", end=True)
                attacker.send(headers)


def large_bodies(target: Target) -> None:
    """Bodies of a megabyte that hold a hundred times as much."""
    # A million empty maps where a digest has its symbols.
    body = packed(msgpack_entry(pre_digest={"symbols": {"a": None}})).replace(
        b"\xa1a\xc0", b"\xa1a\xdd" + (1 << 20).to_bytes(4) + b"\x80" * (1 << 20)
    )
    head = head_of_body(len(body), b"connection: close\r\n")
    while again():
        with target.http1() as attacker:
            attacker.send(head + body)
            attacker.answer()
        time.sleep(0.2)


def read_resets(target: Target) -> None:
    """Calls without a body, which are complete when they are reset."""

    def frames(connection: RawHttp2) -> Iterable[bytes]:
        for _ in range(1000):
            stream, headers = connection.headers("GET", "/readyz", end=True)
            yield headers + connection.reset(stream)

    send_for_ever(target, recorded(target, frames), at_once=8)


def dear_calls(target: Target) -> None:
    """The call that takes longest, a hundred at a time, each answer read."""
    with target.http2() as connection:
        calls = b"".join(connection.headers("GET", "/metrics", end=True)[1] for _ in range(STREAMS))
    while again():
        send_and_listen(target, calls)


def large_blocks(target: Target) -> None:
    """A block of many commands, read with their content twice a second."""
    call = b"GET /blocks/0/commands?content=true HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    while again():
        with target.http1() as attacker:
            attacker.send(call)
            while attacker.received():
                pass
        time.sleep(0.5)


def continuations(target: Target) -> None:
    """Header blocks that never end: of frames that hold much, and of frames that hold nothing."""
    begun = HeadersFrame(1, data=b"\x82").serialize()
    much = ContinuationFrame(1, data=b"\x00\x01a\x01b" * 2000).serialize() * 100
    nothing = ContinuationFrame(1).serialize() * 10_000
    while again():
        for flood in (much, nothing):
            send_and_listen(target, begun + flood)


def header_tables(target: Target) -> None:
    """Header blocks that resize their table and fill it several times over, and ask for nothing."""
    resized = b"\x20\x3f\xe1\x1f"  # RFC 7541, section 6.3: to nothing, and to 4096 bytes
    block = resized + b"\x82" + b"\x40\x01a\x01b" * 1500
    frames = [
        HeadersFrame(stream, data=block, flags=["END_HEADERS", "END_STREAM"]).serialize()
        for stream in range(1, 2000, 2)
    ]
    send_for_ever(target, frames, at_once=1)


def settings(target: Target) -> None:
    """SETTINGS that resize the header table; that each was taken in is not read."""
    pair = (SettingsFrame(0, settings={SettingsFrame.HEADER_TABLE_SIZE: to}) for to in (0, 4096))
    flood = b"".join(frame.serialize() for frame in pair) * 5000
    while again():
        with target.http2() as attacker:
            attacker.socket.settimeout(0.2)
            attacker.send(flood)


def windows_that_change(target: Target) -> None:
    """The window of a hundred waiting answers, changed by one frame again and again."""
    size = SettingsFrame.INITIAL_WINDOW_SIZE
    pair = (SettingsFrame(0, settings={size: to}) for to in (1, 0))
    changes = b"".join(frame.serialize() for frame in pair) * 100
    while again():
        with target.http2({size: 0}) as attacker:
            ask_for_much(attacker)
            send_until_cut(attacker, changes, PAUSE_S)


def windows_of_a_byte(target: Target) -> None:
    """A hundred large answers, a byte of each at a time."""
    more = b"".join(
        WindowUpdateFrame(stream, window_increment=1).serialize() for stream in range(1, 200, 2)
    )
    while again():
        with target.http2({SettingsFrame.INITIAL_WINDOW_SIZE: 1}) as attacker:
            ask_for_much(attacker)
            send_until_cut(attacker, more, PAUSE_S)


def slow_headers(target: Target) -> None:
    """Headers that come a byte at a time, over HTTP/1.1 and within a frame of HTTP/2."""
    frame = HeadersFrame(1, data=bytes(16_000), flags=["END_HEADERS"]).serialize()[:9]
    over_http2 = PREFACE + SettingsFrame(0).serialize() + frame
    trickle(target, (b"GET /healthz HTTP/1.1\r\nhost: x\r\nx: ", over_http2))


def slow_bodies(target: Target) -> None:
    """Bodies that come a byte at a time, over HTTP/1.1."""
    trickle(target, (head_of_body(1_000_000),))


def slow_streams(target: Target) -> None:
    """Bodies that come a byte at a time, over HTTP/2: a frame for each byte."""
    send_bytes(target, SLOW_PAUSE_S)


def small_frames(target: Target) -> None:
    """The same, faster than a client that is only slow."""
    send_bytes(target, SHORT_PAUSE_S)


def again() -> bool:
    """Let others have a turn; an attack goes on until its process is ended."""
    time.sleep(PAUSE_S)
    return True


def recorded(target: Target, frames: Callable[[RawHttp2], Iterable[bytes]]) -> list[bytes]:
    """What a connection would send, to be sent by others: every one begins in the same state."""
    with target.http2() as connection:
        return list(frames(connection))


def send_for_ever(target: Target, frames: list[bytes], at_once: int) -> None:
    """All frames on one connection after another, so many at once."""
    parts = [b"".join(frames[at : at + at_once]) for at in range(0, len(frames), at_once)]
    while again():
        with target.http2() as attacker:
            for part in parts:
                if not attacker.send(part):
                    break
                time.sleep(SHORT_PAUSE_S)


def send_and_listen(target: Target, flood: bytes) -> None:
    """A connection with all of this, until the service ends it or has no more to say."""
    with target.http2() as attacker:
        attacker.socket.settimeout(0.2)
        with suppress(TimeoutError):
            if attacker.send(flood):
                attacker.answer()


def trickle(target: Target, beginnings: Iterable[bytes]) -> None:
    """Connections that begin so, in turn, and then send a byte at a time, until all are cut off."""
    with ExitStack() as stack:
        slow = [stack.enter_context(target.http1()) for _ in range(SLOW)]
        for attacker, begun in zip(slow, cycle(beginnings), strict=False):
            attacker.send(begun)
        while slow:
            slow = [attacker for attacker in slow if attacker.send(b"a")]
            time.sleep(SLOW_PAUSE_S)


def head_of_body(size_bytes: int, more: bytes = b"") -> bytes:
    """What is in front of a body over HTTP/1.1."""
    return (
        b"POST /entries HTTP/1.1\r\nhost: x\r\n%bcontent-type: %b\r\ncontent-length: %d\r\n\r\n"
        % (more, MSGPACK.encode(), size_bytes)
    )


def ask_for_much(attacker: RawHttp2) -> None:
    """A hundred calls with large answers."""
    for _ in range(STREAMS):
        _, headers = attacker.headers("GET", "/openapi.json", end=True)
        attacker.send(headers)


def send_bytes(target: Target, pause_s: float) -> None:
    """A hundred bodies on a connection, a further byte of each at a time."""
    with target.http2() as connection:
        begun = b"".join(connection.headers(more=BODY)[1] for _ in range(STREAMS))
        byte = b"".join(connection.data(1 + 2 * number, b"\x81") for number in range(STREAMS))
    while again():
        with target.http2() as attacker:
            attacker.send(begun)
            send_until_cut(attacker, byte, pause_s)


def send_until_cut(attacker: RawHttp2, part: bytes, pause_s: float) -> None:
    """The same again and again, until the service ends the connection."""
    while attacker.send(part) and not attacker.is_cut():
        time.sleep(pause_s)


ATTACKS: Final[dict[str, Callable[[Target], None]]] = {
    attack.__name__: attack
    for attack in (
        rapid_resets,
        read_resets,
        stream_flood,
        silent_connections,
        slow_headers,
        slow_bodies,
        slow_streams,
        small_frames,
        dear_calls,
        large_blocks,
        continuations,
        header_tables,
        settings,
        pings,
        no_window,
        windows_of_a_byte,
        windows_that_change,
        large_bodies,
    )
}
