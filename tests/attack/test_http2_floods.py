"""What the HTTP/2 layer of the real server makes of hostile frames, while others are served."""

import gzip
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from itertools import islice, repeat
from typing import Final

import h2.config
import h2.connection
import h2.settings
import httpx
import pytest
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from app.api.connections import MAX_SMALL_PARTS
from tests.support.honest_client import HonestClient
from tests.support.http_entries import MSGPACK, metric, msgpack_entry, packed
from tests.support.raw_http import RawHttp2
from tests.support.service import Service
from tests.support.waiting import wait_for
from tests.support.worker_memory import WorkerMemory

MIB = 1 << 20
REFUSED_STREAM: Final = 7
ENHANCE_YOUR_CALM: Final = 11
STREAMS: Final = 100
SURPLUS: Final = 20
BODY: Final = (("content-type", MSGPACK),)
# Unfinished bodies may take 64 MiB (MAX_QUEUE_BYTES) and answers that nobody takes as much, and
# there are buffers in front of both.
BOUND_BYTES: Final = 192 * MIB


@pytest.fixture
def memory(service: Service) -> WorkerMemory:
    return WorkerMemory(service.worker_pid)


@pytest.fixture
def honest(service: Service) -> Iterator[HonestClient]:
    with HonestClient(service) as client:
        yield client


@pytest.fixture
def client(service: Service) -> Iterator[httpx.Client]:
    with service.client() as client:
        yield client


@pytest.fixture
def attackers(service: Service) -> Iterator[Callable[..., RawHttp2]]:
    """Opens hostile connections; they stay open until the end of the test."""
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(RawHttp2(service.port, **options))


def flood(attacker: RawHttp2, frames: Iterator[bytes]) -> int | None:
    """Send until the server ends the connection, or reads no more; its error code, if it gave one.

    At most 16 MiB are sent.
    """
    attacker.socket.settimeout(1)
    sent = 0
    with suppress(TimeoutError):
        for part in frames:
            sent += len(part)
            if not attacker.send(part) or sent > 16 * MIB:
                break
    with suppress(TimeoutError):
        farewell = attacker.goodbye()
        return None if farewell is None else farewell.error_code
    return None


def rapid_resets(attacker: RawHttp2) -> Iterator[bytes]:
    """CVE-2023-44487: streams that are opened and reset at once count as closed."""
    while True:
        stream, headers = attacker.headers(more=BODY)
        yield headers + attacker.reset(stream)


def continuations(attacker: RawHttp2) -> Iterator[bytes]:
    """VU#421644: a header block that never ends."""
    yield HeadersFrame(1, data=b"\x82").serialize()
    while True:
        yield ContinuationFrame(1, data=b"\x00\x01a\x01b" * 2000).serialize()


def empty_data(attacker: RawHttp2) -> Iterator[bytes]:
    """CVE-2019-9518: frames without content."""
    stream, headers = attacker.headers(more=BODY)
    yield headers
    while True:
        yield attacker.data(stream, b"") * 1000


@pytest.mark.parametrize("frames", [rapid_resets, continuations, empty_data])
def test_a_flood_that_costs_the_server_work_ends_the_connection(
    attackers: Callable[..., RawHttp2],
    memory: WorkerMemory,
    honest: HonestClient,
    frames: Callable[[RawHttp2], Iterator[bytes]],
) -> None:
    attacker = attackers()
    assert flood(attacker, frames(attacker)) in (ENHANCE_YOUR_CALM, None)
    wait_for(attacker.is_cut, "the connection is cut")
    honest.goes_on()
    assert memory.extra_bytes < 32 * MIB


@pytest.mark.parametrize(
    "frame",
    [
        # CVE-2019-9512 and 9515: each asks for an answer, which is not read.
        PingFrame(0, opaque_data=b"8 bytes."),
        SettingsFrame(0, settings={3: 100}),
        PriorityFrame(1, depends_on=0, stream_weight=1),
        WindowUpdateFrame(0, window_increment=1),
    ],
    ids=lambda frame: type(frame).__name__,
)
def test_a_flood_of_control_frames_is_held_back_or_costs_nothing(
    attackers: Callable[..., RawHttp2], memory: WorkerMemory, honest: HonestClient, frame: PingFrame
) -> None:
    batch = frame.serialize() * 1000
    flood(attackers(), iter(lambda: batch, b""))
    honest.goes_on()
    assert memory.extra_bytes < 32 * MIB


def test_headers_that_unpack_to_too_much_are_refused(
    attackers: Callable[..., RawHttp2], memory: WorkerMemory, honest: HonestClient
) -> None:
    """An HPACK bomb: one header of 4 KB enters the table, and is then named 12,000 times."""
    attacker = attackers()
    bomb = HeadersFrame(1, flags=["END_HEADERS", "END_STREAM"])
    bomb.data = b"\x82\x86\x84\x40\x01a\x7f\x81\x1e" + b"b" * 4000 + b"\xbe" * 12_000
    assert flood(attacker, iter([bomb.serialize()])) == ENHANCE_YOUR_CALM
    honest.goes_on()
    assert memory.extra_bytes < 32 * MIB


def test_streams_that_are_opened_and_left_take_no_room_from_others(
    attackers: Callable[..., RawHttp2], memory: WorkerMemory, honest: HonestClient
) -> None:
    """As many as there may be on one connection; the others are refused, and nothing else."""
    for _ in range(20):
        attacker = attackers()
        for _ in range(STREAMS):
            stream, headers = attacker.headers(more=BODY)
            attacker.send(headers + attacker.data(stream, b"\x81"))
        surplus = [attacker.headers(more=BODY) for _ in range(SURPLUS)]
        attacker.send(b"".join(headers for _, headers in surplus))
        resets = (frame for frame in attacker.frames() if isinstance(frame, RstStreamFrame))
        refused = [(frame.stream_id, frame.error_code) for frame in islice(resets, SURPLUS)]
        assert refused == [(stream, REFUSED_STREAM) for stream, _ in surplus]
    honest.goes_on()
    assert memory.extra_bytes < BOUND_BYTES


def test_a_flood_of_bodies_in_single_bytes_ends_the_connection_and_what_was_read_of_it(
    attackers: Callable[..., RawHttp2], honest: HonestClient, client: httpx.Client
) -> None:
    """What the server has taken in of them is far more than is read of it."""
    before = metric(client, "ht_journal_rejected_total", reason="incomplete_body")
    attacker = attackers()
    streams = []
    for _ in range(STREAMS - 1):
        stream, headers = attacker.headers(more=BODY)
        attacker.send(headers)
        streams.append(stream)
    # All have begun: those whose connection is gone before they do are not counted.
    assert attacker.is_served()
    byte = b"".join(attacker.data(stream, b"\x81") for stream in streams)
    assert flood(attacker, repeat(byte)) == ENHANCE_YOUR_CALM
    attacker.socket.close()
    wait_for(
        lambda: (
            metric(client, "ht_journal_rejected_total", reason="incomplete_body")
            >= before + len(streams)
        ),
        "all its bodies have ended",
    )
    honest.goes_on()


def test_a_body_in_single_bytes_is_read_to_its_end(attackers: Callable[..., RawHttp2]) -> None:
    """Slowly, since it comes in more of them than are read in a window of time."""
    body = packed(*(msgpack_entry() for _ in range(3)))
    assert len(body) > 3 * MAX_SMALL_PARTS
    sender = attackers()
    stream, headers = sender.headers(more=BODY)
    single = (sender.data(stream, body[at : at + 1]) for at in range(len(body)))
    sender.send(headers + b"".join(single) + sender.data(stream, b"", end=True))
    answers = (frame for frame in sender.frames() if frame.stream_id == stream)
    assert any(isinstance(frame, DataFrame) and b'"count":3' in frame.data for frame in answers)


def test_large_bodies_that_never_end_are_bounded_together(
    service: Service, memory: WorkerMemory, honest: HonestClient
) -> None:
    """Five connections with as many streams as there may be, which respect the server's windows."""
    with ExitStack() as stack:
        for _ in range(5):
            connection = stack.enter_context(
                socket.create_connection(("127.0.0.1", service.port), 10)
            )
            assert send_bodies(connection, streams=STREAMS, size_bytes=2 * MIB) > 64 * MIB
        honest.goes_on()
        assert memory.extra_bytes < BOUND_BYTES


def test_what_gzip_hides_in_many_bodies_at_once_is_not_unpacked_at_once(
    attackers: Callable[..., RawHttp2], memory: WorkerMemory, honest: HonestClient
) -> None:
    """A gigabyte in a megabyte: one body after another, and no more of them than wait for it."""
    numbers = b"\xdd" + (7 * MIB).to_bytes(4) + b"\xcc\x01" * (7 * MIB)
    hiding = packed(msgpack_entry(pre_digest={"symbols": {"a": "PLACE"}}))
    bomb = gzip.compress(hiding.replace(b"\xa5PLACE", numbers))
    attacker = attackers()
    # By then the server's window for the connection is as wide as it will be.
    assert attacker.is_served()
    answers = {}
    for _ in range(64):
        stream, headers = attacker.headers(more=(*BODY, ("content-encoding", "gzip")))
        attacker.send(headers + attacker.data(stream, bomb, end=True))
        answers[stream] = b""
    frames = (frame for frame in attacker.frames() if isinstance(frame, DataFrame))
    for _ in answers:
        honest.goes_on(1)
        for frame in frames:
            answers[frame.stream_id] += frame.data
            if "END_STREAM" in frame.flags:
                break
    assert {re.findall(rb'"error_code":(...)', each)[0] for each in answers.values()} == {
        b"413",
        b"503",
    }
    assert memory.extra_bytes < BOUND_BYTES


def send_bodies(connection: socket.socket, *, streams: int, size_bytes: int) -> int:
    """The beginnings of so many bodies, a frame of each in turn; how much the server took."""
    client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    client.initiate_connection()
    headers = [(":method", "POST"), (":scheme", "http"), (":authority", "x"), (":path", "/entries")]
    left = {1 + 2 * number: size_bytes for number in range(streams)}
    for stream in left:
        client.send_headers(stream, [*headers, *BODY])
    sent = 0
    connection.settimeout(1)
    while left:
        stalled = True
        for stream in list(left):
            try:
                room = min(client.local_flow_control_window(stream), left[stream], 16_384)
            except h2.exceptions.ProtocolError:  # the server has refused it
                del left[stream]
                continue
            if room <= 0:
                if not left[stream]:
                    del left[stream]
                continue
            client.send_data(stream, bytes(room))
            left[stream] -= room
            sent += room
            stalled = False
        connection.sendall(client.data_to_send())
        connection.setblocking(stalled)
        if stalled:
            connection.settimeout(1)
        try:
            client.receive_data(connection.recv(1 << 20))
        except BlockingIOError:
            pass
        except TimeoutError:
            break
        finally:
            connection.settimeout(1)
    return sent


def test_answers_that_nobody_takes_are_bounded_together(
    attackers: Callable[..., RawHttp2], memory: WorkerMemory, honest: HonestClient
) -> None:
    """A window of nothing keeps every answer in the server: 16 MB of them for each connection."""
    hostile: list[RawHttp2] = []
    while not any(attacker.is_cut() for attacker in hostile):
        assert len(hostile) < 60
        attacker = attackers(settings={SettingsFrame.INITIAL_WINDOW_SIZE: 0})
        hostile.append(attacker)
        for _ in range(STREAMS):
            _, headers = attacker.headers("GET", "/openapi.json", end=True)
            attacker.send(headers)
        # So that none of them waits in line, where a slow machine refuses it: heads need no window.
        heads = (frame for frame in attacker.frames() if isinstance(frame, HeadersFrame))
        assert len(list(islice(heads, STREAMS))) == STREAMS or attacker.is_cut()
        honest.goes_on(1)
    assert memory.extra_bytes < BOUND_BYTES


def test_a_window_of_one_byte_at_a_time_holds_nobody_up(
    attackers: Callable[..., RawHttp2], memory: WorkerMemory, honest: HonestClient
) -> None:
    attacker = attackers(settings={SettingsFrame.INITIAL_WINDOW_SIZE: 1})
    stream, headers = attacker.headers("GET", "/openapi.json", end=True)
    attacker.send(headers)
    for _ in range(2000):
        attacker.send(WindowUpdateFrame(stream, window_increment=1).serialize())
    honest.goes_on()
    assert memory.extra_bytes < 32 * MIB
