"""TLS: ALPN chooses the protocol, and what can't be served refuses the start."""

import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import trustme

from tests.integration.conftest import MakeService
from tests.support.http_entries import accepted, json_entry, msgpack_entry, post, post_msgpack
from tests.support.service import Service

MIB = 1 << 20


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def service(
    authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory, shared_database_url: str
) -> Iterator[Service]:
    directory = tmp_path_factory.mktemp("tls")
    certificate = authority.issue_cert("127.0.0.1")
    key = directory / "key.pem"
    key.touch(mode=0o600)
    certificate.private_key_pem.write_to_path(key)
    for pem in certificate.cert_chain_pems:
        pem.write_to_path(directory / "cert.pem", append=True)
    with Service(
        directory / "data",
        shared_database_url,
        ENVIRONMENT="tls",
        TLS_CERT=directory / "cert.pem",
        TLS_KEY=key,
    ) as service:
        yield service.start()


@pytest.fixture
def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@pytest.mark.parametrize(
    ("http1", "http2", "version"),
    [(True, True, "HTTP/2"), (False, True, "HTTP/2"), (True, False, "HTTP/1.1")],
)
def test_alpn_chooses_the_protocol(
    service: Service, trusting: ssl.SSLContext, http1: bool, http2: bool, version: str
) -> None:
    with service.client(http1=http1, http2=http2, verify=trusting) as client:
        response = post(client, json_entry())
    accepted(response)
    assert response.http_version == version


def test_the_largest_bodies_pass_over_tls(service: Service, trusting: ssl.SSLContext) -> None:
    entries = [msgpack_entry(command_data=b"\x01" * MIB) for _ in range(15)]
    with service.client(http2=True, verify=trusting) as client:
        assert accepted(post_msgpack(client, *entries))["count"] == 15


def test_a_client_that_does_not_trust_the_certificate_gets_nowhere(service: Service) -> None:
    with (
        service.client(verify=ssl.create_default_context()) as client,
        pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"),
    ):
        client.get("/healthz")


def test_a_client_that_knows_no_tls_1_3_gets_nowhere(
    service: Service, trusting: ssl.SSLContext
) -> None:
    with service.client(verify=trusting) as client:
        assert client.get("/healthz").status_code == 200
    trusting.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        service.client(verify=trusting) as client,
        pytest.raises(httpx.ConnectError, match="PROTOCOL_VERSION"),
    ):
        client.get("/healthz")


def test_plain_http_on_the_port_of_tls_gets_no_answer(service: Service) -> None:
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://127.0.0.1:{service.port}/healthz", trust_env=False)


@pytest.mark.parametrize("content", [None, "not a certificate"])
def test_a_certificate_that_can_not_be_used_refuses_the_start_in_one_line(
    make_service: MakeService, tmp_path: Path, content: str | None
) -> None:
    path = tmp_path / "certificate.pem"
    if content is not None:
        path.write_text(content)
    status, log = make_service(TLS_CERT=path, TLS_KEY=path).start_refused()
    assert status == 2
    assert log.count("\n") == 1
    assert f"JOURNAL_TLS_CERT='{path}'" in log
