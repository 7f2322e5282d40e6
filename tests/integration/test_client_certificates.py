"""TLS_CLIENT_CA: who has no certificate of that authority does not get as far as HTTP."""

import json
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
import trustme
from click.testing import CliRunner, Result

from app.cli import main
from app.environment import TOKEN_VARIABLE
from app.tokens import Scope
from tests.integration.conftest import MakeService
from tests.support.bearer_tokens import TokensFile, bearing
from tests.support.http_entries import accepted, json_entry, post, refused
from tests.support.service import Service

HEALTHCHECK = Path(__file__).parents[2] / "deploy" / "healthcheck.py"


class Identity(NamedTuple):
    """A certificate and its key as files, mode 0600."""

    cert: Path
    key: Path


class Guarded(NamedTuple):
    """A service that wants client certificates and tokens."""

    service: Service
    authority: Path
    client: Identity
    stranger: Identity
    writer: str
    tokens_dir: Path

    def context(self, identity: Identity | None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.authority)
        if identity is not None:
            context.load_cert_chain(*identity)
        return context


def issue(authority: trustme.CA, directory: Path, name: str) -> Identity:
    certificate = authority.issue_cert(name)
    identity = Identity(directory / f"{name}.pem", directory / f"{name}.key")
    identity.key.touch(mode=0o600)
    certificate.private_key_pem.write_to_path(identity.key)
    for pem in certificate.cert_chain_pems:
        pem.write_to_path(identity.cert, append=True)
    return identity


@pytest.fixture(scope="module")
def guarded(
    tmp_path_factory: pytest.TempPathFactory, shared_database_url: str
) -> Iterator[Guarded]:
    directory = tmp_path_factory.mktemp("certificates")
    ours, theirs = trustme.CA(), trustme.CA()
    authority = directory / "authority.pem"
    ours.cert_pem.write_to_path(authority)
    server = issue(ours, directory, "127.0.0.1")
    tokens = TokensFile(directory / "tokens.json")
    with Service(
        directory / "data",
        shared_database_url,
        ENVIRONMENT="certificates",
        TLS_CERT=server.cert,
        TLS_KEY=server.key,
        TLS_CLIENT_CA=authority,
        TOKENS_FILE=tokens.path,
    ) as service:
        found = Guarded(
            service,
            authority,
            issue(ours, directory, "engine.example"),
            issue(theirs, directory, "stranger.example"),
            tokens.add("engine", Scope.ADMIN),
            directory,
        )
        service.tls = found.context(found.client)
        service.start()
        yield found


@pytest.mark.parametrize("http2", [False, True], ids=["h1", "h2"])
def test_a_certificate_of_the_authority_gets_in_and_still_needs_a_token(
    guarded: Guarded, http2: bool
) -> None:
    context = guarded.context(guarded.client)
    with guarded.service.client(http2=http2, verify=context) as client:
        refused(post(client, json_entry()), 40101)
        accepted(
            client.post(
                "/entries", json={"entries": [json_entry()]}, headers=bearing(guarded.writer)
            )
        )


@pytest.mark.parametrize("kind", ["none", "stranger"])
def test_without_a_certificate_of_the_authority_not_even_health_is_told(
    guarded: Guarded, kind: str
) -> None:
    identity = None if kind == "none" else guarded.stranger
    with (
        guarded.service.client(verify=guarded.context(identity)) as client,
        pytest.raises(httpx.TransportError),
    ):
        client.get("/healthz")


def journal(guarded: Guarded, *arguments: object, token: str | None) -> Result:
    environ = {TOKEN_VARIABLE: token}
    connection = ("--url", guarded.service.url, "--ca-file", guarded.authority)
    command = [str(argument) for argument in (*arguments, *connection)]
    return CliRunner(env=environ).invoke(main, command)


def test_the_command_line_shows_certificate_and_token(guarded: Guarded, tmp_path: Path) -> None:
    shown = ("--cert-file", guarded.client.cert, "--key-file", guarded.client.key)
    result = journal(guarded, "checkpoint", *shown, token=guarded.writer)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["environment"] == "certificates"
    result = journal(guarded, "checkpoint", *shown, token=None)
    assert result.exit_code == 1
    assert "40101" in result.stderr
    result = journal(guarded, "checkpoint", token=guarded.writer)
    assert result.exit_code == 1
    assert "no answer" in result.stderr
    token_file = tmp_path / "token"
    token_file.touch(mode=0o600)
    token_file.write_text(guarded.writer + "\n")
    entries = tmp_path / "entries.json"
    entries.write_text(json.dumps({"entries": [json_entry()]}))
    result = journal(guarded, "post", *shown, "--token-file", token_file, entries, token=None)
    assert result.exit_code == 0, result.output
    assert guarded.writer not in result.output


def test_the_health_check_of_the_image_needs_no_certificate(guarded: Guarded) -> None:
    """It sees that the port speaks TLS; a certificate for it would be one more to guard."""

    def check(port: int) -> int:
        environ = os.environ | {
            "JOURNAL_PORT": str(port),
            "JOURNAL_TLS_CERT": "cert.pem",
            "JOURNAL_TLS_CLIENT_CA": "authority.pem",
        }
        command = [sys.executable, str(HEALTHCHECK)]
        return subprocess.run(command, env=environ, check=False, capture_output=True).returncode

    assert check(guarded.service.port) == 0
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    assert check(port) == 1


def test_authorities_or_a_key_that_can_not_be_used_refuse_the_start_in_one_line(
    guarded: Guarded, make_service: MakeService, tmp_path: Path
) -> None:
    server = issue(trustme.CA(), tmp_path, "127.0.0.1")
    tls = {"TLS_CERT": server.cert, "TLS_KEY": server.key}
    service = make_service()
    status, log = service.start_refused(**tls, TLS_CLIENT_CA=server.key)
    assert (status, log.count("\n")) == (2, 1)
    assert f"JOURNAL_TLS_CLIENT_CA='{server.key}'" in log
    server.key.chmod(0o644)
    status, log = service.start_refused(**tls)
    assert (status, log.count("\n")) == (2, 1)
    assert f"JOURNAL_TLS_KEY='{server.key}': has the mode 0644" in log
