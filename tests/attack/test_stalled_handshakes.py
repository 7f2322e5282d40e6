"""TLS handshakes that are begun and left: cut off as if TLS were not there, and in nobody's way.

The server itself gives a handshake all the time in the world.
"""

import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import pytest
import trustme

from tests.attack.conftest import NO_DATABASE
from tests.support.honest_client import HonestClient
from tests.support.promise import Conversation
from tests.support.raw_http import RawConnection
from tests.support.service import Service
from tests.support.waiting import wait_for

SHORT_S: Final = 1
LONG_S: Final = 3600


class Handshake:
    """A client's side of one, without a socket."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.received, self._to_send = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self.received, self._to_send, server_hostname="127.0.0.1")
        self.is_done = False

    def next_message(self) -> bytes:
        """What is to be sent next: a ClientHello first."""
        try:
            self._tls.do_handshake()
            self.is_done = True
        except ssl.SSLWantReadError:
            pass
        return self._to_send.read()


@contextmanager
def tls_service(
    directory: Path, wrapper: tuple[str, ...] = (), **settings: object
) -> Iterator[Service]:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    cert, key = directory / "cert.pem", directory / "key.pem"
    key.touch(mode=0o600)
    certificate.private_key_pem.write_to_path(key)
    certificate.cert_chain_pems[0].write_to_path(cert)
    tls = {"TLS_CERT": cert, "TLS_KEY": key}
    with Service(
        directory / "data", NO_DATABASE, ALLOW_NEW_WAL="true", **tls, **settings
    ) as service:
        service.wrapper = wrapper
        service.tls = ssl.create_default_context()
        authority.configure_trust(service.tls)
        yield service.start()
        assert "Traceback" not in service.log


def client_hello(service: Service) -> bytes:
    assert isinstance(service.tls, ssl.SSLContext)
    return Handshake(service.tls).next_message()


def with_nothing(_: Service, __: RawConnection) -> None:
    """Only TCP."""


def with_half_a_hello(service: Service, connection: RawConnection) -> None:
    hello = client_hello(service)
    connection.send(hello[: len(hello) // 2])


def with_the_head_of_a_record(_: Service, connection: RawConnection) -> None:
    """A handshake record of 16 KiB is to follow."""
    connection.send(b"\x16\x03\x01\x40\x00")


def with_a_hello(service: Service, connection: RawConnection) -> None:
    """The server has done its part, the costly one."""
    connection.send(client_hello(service))
    assert connection.received()


def with_a_whole_handshake(service: Service, connection: RawConnection) -> None:
    assert isinstance(service.tls, ssl.SSLContext)
    handshake = Handshake(service.tls)
    connection.send(handshake.next_message())
    while not handshake.is_done:
        handshake.received.write(connection.received())
        connection.send(handshake.next_message())


STALLED: Final[dict[str, Callable[[Service, RawConnection], None]]] = {
    "nothing": with_nothing,
    "half a ClientHello": with_half_a_hello,
    "the head of a record": with_the_head_of_a_record,
    "a ClientHello": with_a_hello,
    "a handshake": with_a_whole_handshake,
}


def test_every_kind_of_stalled_handshake_is_cut_off_by_the_limit_of_a_first_request(
    tmp_path: Path,
) -> None:
    """Neither does it help to send a byte now and then."""
    with (
        tls_service(
            tmp_path, HEADER_TIMEOUT_S=SHORT_S, BODY_TIMEOUT_S=LONG_S, IDLE_TIMEOUT_S=LONG_S
        ) as service,
        ExitStack() as stack,
    ):
        honest = stack.enter_context(HonestClient(service))
        stalled: dict[str, RawConnection] = {}
        for name, begin in STALLED.items():
            stalled[name] = stack.enter_context(RawConnection(service.port))
            begin(service, stalled[name])
        slow = stack.enter_context(RawConnection(service.port))
        with_the_head_of_a_record(service, slow)

        def all_are_cut() -> bool:
            slow.send(b"\0")
            for name in [name for name, each in stalled.items() if each.is_cut()]:
                del stalled[name]
            return not stalled and slow.is_cut()

        wait_for(all_are_cut, f"all of these are cut off: {[*stalled]}, and the slow one")
        honest.goes_on()


@pytest.mark.parametrize("kind", ["nothing", "half a ClientHello", "a ClientHello"])
def test_stalled_handshakes_on_every_connection_keep_no_honest_client_out(
    tmp_path: Path, kind: str
) -> None:
    """The service accepts 256 connections, and has time for each of them."""
    with (
        tls_service(tmp_path, CHANNEL_CAPACITY=256, HEADER_TIMEOUT_S=LONG_S) as service,
        ExitStack() as stack,
        HonestClient(service) as honest,
    ):
        for _ in range(400):
            connection = stack.enter_context(RawConnection(service.port, timeout_s=30))
            STALLED[kind](service, connection)
        honest.goes_on()


def test_more_stalled_handshakes_than_the_soft_limit_of_descriptors_keep_nobody_from_journaling(
    tmp_path: Path,
) -> None:
    """Nothing else bounds how many the server accepts before they are cut off."""
    few_at_first = ("prlimit", "--nofile=256:4096")
    with (
        tls_service(tmp_path, few_at_first, WAL_SEGMENT_BYTES=65536) as service,
        ExitStack() as stack,
        service.client(verify=service.tls) as client,
    ):
        conversation = Conversation(size=6000)
        assert conversation.send(client) == 200
        hello = client_hello(service)
        # All at once: from a second on, they begin to be cut off.
        for _ in range(400):
            stack.enter_context(RawConnection(service.port)).send(hello[: len(hello) // 2])
        assert set(conversation.send_all(client, 30)) == {200}
        assert len([*(service.data_dir / "wal").glob("*.wal")]) > 3
        with HonestClient(service) as honest:
            honest.goes_on()
