"""Readers that take a little at a time: they get everything, and hold nobody else up.

Those that take nothing are in `tests/integration/test_leaving_clients.py`.
"""

import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Final

import httpx
import pytest
from hyperframe.frame import DataFrame, SettingsFrame, WindowUpdateFrame

from tests.attack.conftest import NO_DATABASE
from tests.support.http_entries import accepted, json_entry, post
from tests.support.raw_http import RawConnection, RawHttp2
from tests.support.service import Service

BLOCKS: Final = 900
MORE_BLOCKS: Final = 20
READERS: Final = 20
LITTLE: Final = 128
# More than the event of a block has.
BLOCK_BYTES: Final = 8192
SMALL_BUFFER: Final = 16_384
SMALL_SEGMENTS: Final = 1400
STREAM: Final = b"GET /blocks/stream HTTP/1.1\r\nhost: x\r\n\r\n"
PAGE: Final = b"GET /blocks?limit=1000 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Slow readers outlast all of its limits for those that do nothing."""
    folder = tmp_path_factory.mktemp("read")
    limits = {"HEADER_TIMEOUT_S": 1, "BODY_TIMEOUT_S": 1, "IDLE_TIMEOUT_S": 1}
    with Service(
        folder / "data", NO_DATABASE, ALLOW_NEW_WAL="true", MAX_BATCH_SIZE=1, **limits
    ) as service:
        service.start()
        with ThreadPoolExecutor(6) as threads:
            list(threads.map(lambda _: make_blocks(service, BLOCKS // 6), range(6)))
        yield service
        assert "Traceback" not in service.log


def make_blocks(service: Service, count: int) -> None:
    with service.client() as client:
        for _ in range(count):
            accepted(post(client, json_entry(command_type="TickSnapshot")))


def rounds(service: Service, client: httpx.Client) -> Iterator[None]:
    """Rounds in each of which others are served, until the service has cut off an idle client."""
    with RawConnection(service.port) as idle:
        while not idle.is_cut():
            yield
            accepted(post(client, json_entry()))


def slow_reader(stack: ExitStack, port: int, request: bytes) -> socket.socket:
    """Its kernel has next to no room for what it does not read."""
    reader = stack.enter_context(socket.socket())
    reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
    reader.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SMALL_SEGMENTS)
    reader.settimeout(30)
    reader.connect(("127.0.0.1", port))
    reader.sendall(request)
    return reader


def a_little(reader: socket.socket) -> bytes:
    try:
        return reader.recv(LITTLE, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return b""


def hurry(reader: socket.socket) -> None:
    reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)


def heights(events: bytes | bytearray) -> list[int]:
    return [int(number) for number in re.findall(rb"\nid: (\d+)\ndata: [^\n]+\n\n", events)]


def test_slow_readers_of_the_stream_get_every_block_and_new_ones_too(service: Service) -> None:
    with ExitStack() as stack, service.client() as client:
        readers = [slow_reader(stack, service.port, STREAM) for _ in range(READERS)]
        taken = [bytearray() for _ in readers]
        for _ in rounds(service, client):
            for reader, events in zip(readers, taken, strict=True):
                events.extend(a_little(reader))
        make_blocks(service, MORE_BLOCKS)
        newest = client.get("/blocks/latest").json()["batch_seq"]
        assert newest >= BLOCKS + MORE_BLOCKS - 1
        assert all(newest not in heights(events) for events in taken), "they were too quick"
        for reader, events in zip(readers, taken, strict=True):
            hurry(reader)
            while newest not in heights(events[-BLOCK_BYTES:]):
                part = reader.recv(1 << 16)
                assert part, "the stream has ended"
                events.extend(part)
            assert heights(events) == list(range(newest + 1))


def test_slow_readers_of_a_large_answer_get_all_of_it(service: Service) -> None:
    with ExitStack() as stack, service.client() as client:
        whole = client.get("/blocks", params={"limit": 1000}).content
        readers = [slow_reader(stack, service.port, PAGE) for _ in range(READERS)]
        taken = [bytearray() for _ in readers]
        for _ in rounds(service, client):
            for reader, answer in zip(readers, taken, strict=True):
                answer.extend(a_little(reader))
        assert all(len(answer) < len(whole) for answer in taken), "they were too quick"
        for reader, answer in zip(readers, taken, strict=True):
            hurry(reader)
            while part := reader.recv(1 << 16):
                answer.extend(part)
            assert answer.startswith(b"HTTP/1.1 200 ")
            assert answer.partition(b"\r\n\r\n")[2] == whole


def test_slow_readers_over_http_2_get_all_of_it_by_small_windows(service: Service) -> None:
    with service.client() as client:
        whole = client.get("/blocks", params={"limit": 1000}).content
        with RawHttp2(
            service.port, {SettingsFrame.INITIAL_WINDOW_SIZE: LITTLE}, connection_window=1 << 30
        ) as reader:
            stream, headers = reader.headers("GET", "/blocks?limit=1000", end=True)
            reader.send(headers)
            frames = (frame for frame in reader.frames() if isinstance(frame, DataFrame))
            answer = bytearray()
            for _ in rounds(service, client):
                part = next(frames).data
                assert len(part) <= LITTLE
                answer += part
                reader.send(WindowUpdateFrame(stream, window_increment=len(part)).serialize())
            assert len(answer) < len(whole), "it was too quick"
            reader.send(WindowUpdateFrame(stream, window_increment=1 << 30).serialize())
            while len(answer) < len(whole):
                answer += next(frames).data
            assert answer == whole
