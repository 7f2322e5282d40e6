"""Tokens at the door of the real service: who gets in, what others are told, and what is kept."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from click.testing import CliRunner, Result

from app.cli import main
from app.environment import TOKEN_VARIABLE
from app.tokens import PREFIX, Scope, digest_of, id_of
from tests.integration.conftest import MakeService
from tests.support.bearer_tokens import TokensFile, bearing
from tests.support.http_entries import (
    accepted,
    checkpoint,
    durable_offset,
    json_entry,
    metric,
    post,
    refused,
)
from tests.support.postgres_cluster import Cluster
from tests.support.service import Service
from tests.support.tools import tool
from tests.support.waiting import wait_for

EXAMPLES = Path(__file__).parents[2] / "examples"
UNKNOWN = PREFIX + "A" * 43
INSUFFICIENT = 'Bearer realm="journal", error="insufficient_scope", scope="{}"'


class Guarded(NamedTuple):
    """A running service with tokens in force, and tokens of it."""

    service: Service
    tokens: TokensFile
    writer: str
    reader: str
    admin: str
    expired: str

    def client(self, token: str | None = None, **options: Any) -> httpx.Client:
        return self.service.client(headers=bearing(token) if token else {}, **options)

    def reload(self) -> None:
        os.kill(self.service.pid, signal.SIGHUP)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, cluster: Cluster) -> Iterator[Guarded]:
    directory = tmp_path_factory.mktemp("access")
    database_url = cluster.create_migrated()
    tokens = TokensFile(directory / "tokens.json")
    made = {
        "writer": tokens.add("engine", Scope.WRITE),
        "reader": tokens.add("prometheus", Scope.READ),
        "admin": tokens.add("operator", Scope.ADMIN),
        "expired": tokens.add("former", Scope.ADMIN, expires_in_s=-1),
    }
    with Service(directory / "data", database_url, TOKENS_FILE=tokens.path) as service:
        yield Guarded(service.start(), tokens, **made)
    cluster.drop(database_url)


@pytest.fixture
def admin(guarded: Guarded) -> Iterator[httpx.Client]:
    with guarded.client(guarded.admin) as client:
        yield client


def rejections(client: httpx.Client, reason: str) -> float:
    return metric(client, "ht_journal_rejected_total", reason=reason)


@pytest.mark.parametrize("http2", [False, True], ids=["h1", "h2"])
def test_each_scope_opens_its_own_calls_and_admin_opens_all(guarded: Guarded, http2: bool) -> None:
    with guarded.client(guarded.writer, http2=http2) as writer:
        accepted(post(writer, json_entry()))
        assert writer.post("/flush").status_code == 200
        response = writer.get("/checkpoint")
        refused(response, 40301)
        assert response.headers["www-authenticate"] == INSUFFICIENT.format("read")
    with guarded.client(guarded.reader, http2=http2) as reader:
        assert checkpoint(reader)["replication"] != "stopped"
        assert reader.get("/metrics").status_code == 200
        before, counted = durable_offset(reader), rejections(reader, "scope_missing")
        for response in (post(reader, json_entry()), reader.post("/flush")):
            refused(response, 40301)
            assert response.headers["www-authenticate"] == INSUFFICIENT.format("write")
        assert durable_offset(reader) == before
        assert rejections(reader, "scope_missing") == counted + 2
    with guarded.client(guarded.admin, http2=http2) as admin:
        accepted(post(admin, json_entry()))
        assert admin.post("/flush").status_code == 200
        assert checkpoint(admin)


def impostors(guarded: Guarded) -> dict[str, tuple[list[tuple[str, str]], int, str]]:
    """The headers of senders who must not get in, the error code and the reason that is counted."""
    altered = guarded.admin[:-2] + ("AA" if guarded.admin[-2:] != "AA" else "BB")
    admin = f"Bearer {guarded.admin}"
    return {
        "no header": ([], 40101, "token_missing"),
        "no token": ([("authorization", "Bearer")], 40101, "token_missing"),
        "another scheme": ([("authorization", f"Basic {guarded.admin}")], 40101, "token_missing"),
        "token alone": ([("authorization", guarded.admin)], 40101, "token_missing"),
        "unknown": ([("authorization", f"Bearer {UNKNOWN}")], 40102, "token_invalid"),
        "altered": ([("authorization", f"Bearer {altered}")], 40102, "token_invalid"),
        "its hash": (
            [("authorization", f"Bearer {digest_of(guarded.admin.encode())}")],
            40102,
            "token_invalid",
        ),
        "twice": ([("authorization", admin), ("authorization", admin)], 40102, "token_invalid"),
        "expired": ([("authorization", f"Bearer {guarded.expired}")], 40103, "token_expired"),
    }


@pytest.mark.parametrize("http2", [False, True], ids=["h1", "h2"])
@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/entries"), ("GET", "/checkpoint"), ("POST", "/flush")]
)
def test_without_a_good_token_nothing_is_written_or_told_and_it_is_counted(
    guarded: Guarded, admin: httpx.Client, method: str, path: str, http2: bool
) -> None:
    before = durable_offset(admin)
    with guarded.client(http2=http2) as stranger:
        for name, (headers, code, reason) in impostors(guarded).items():
            counted = rejections(admin, reason)
            body = {"entries": [json_entry()]} if path == "/entries" else None
            response = stranger.request(method, path, headers=headers, json=body)
            refused(response, code)
            challenge = response.headers["www-authenticate"]
            assert challenge.startswith('Bearer realm="journal"'), name
            assert ('error="invalid_token"' in challenge) == (code != 40101), name
            assert rejections(admin, reason) == counted + 1, name
    assert durable_offset(admin) == before


def test_what_is_not_said_to_be_open_is_closed_whether_it_is_there_or_not(guarded: Guarded) -> None:
    paths = ["/", "/metrics", "/blocks", "/blocks/stream", "/openapi.json", "/docs", "/nothing"]
    paths += ["/entries", "/healthz/", "/HEALTHZ", "/readyz/../metrics", "/%68ealthz/x"]
    with guarded.client() as stranger:
        for path in paths:
            refused(stranger.get(path), 40101)
            assert stranger.head(path).status_code == 401
        refused(stranger.put("/entries", json={}), 40101)
        refused(stranger.delete("/checkpoint"), 40101)
        assert stranger.get("/healthz").json() == {"status": "ok"}
        assert stranger.get("/readyz").status_code == 200


def journal(*arguments: str, token: str | None = None) -> Result:
    return CliRunner(env={TOKEN_VARIABLE: token}).invoke(main, list(arguments))


def test_the_command_line_shows_the_token_of_the_environment_or_warns_of_its_option(
    guarded: Guarded,
) -> None:
    url = guarded.service.url
    result = journal("checkpoint", "--url", url, token=guarded.reader)
    assert (result.exit_code, result.stderr) == (0, "")
    typed = journal("checkpoint", "--url", url, "--token", guarded.reader)
    assert (typed.exit_code, typed.stdout) == (0, result.stdout)
    assert "list of processes" in typed.stderr
    assert guarded.reader not in typed.output
    refusal = journal("checkpoint", "--url", url, token=f"{guarded.reader} \n")
    assert refusal.exit_code == 2
    assert guarded.reader not in refusal.output
    # It has no blocks yet, which only who may read is told.
    verified = journal("verify", url, "--allow-unsigned", token=guarded.reader)
    assert "no block" in verified.output
    assert "401" in journal("verify", url, "--allow-unsigned").output


@pytest.mark.parametrize("example", ["append.py", "append.sh"])
def test_the_examples_show_a_token(guarded: Guarded, tmp_path: Path, example: str) -> None:
    path = EXAMPLES / example
    if path.suffix == ".sh":
        tool("curl", "the example needs it")
    command = ["sh", str(path)] if path.suffix == ".sh" else [sys.executable, str(path)]
    environ = os.environ | {TOKEN_VARIABLE: guarded.admin, "PYTHONPATH": str(EXAMPLES.parent)}
    done = subprocess.run(
        [*command, guarded.service.url], env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    # Whether it is in Postgres by the time it is looked up is for Postgres to say.
    assert re.search("durable|replicated", done.stdout)


def test_the_document_says_that_a_token_is_needed(admin: httpx.Client) -> None:
    paths = admin.get("/openapi.json").json()["paths"]
    assert paths["/entries"]["post"]["security"] == [{"bearer": ["write"]}]
    assert paths["/checkpoint"]["get"]["security"] == [{"bearer": ["read"]}]
    assert paths["/readyz"]["get"]["security"] == []


def test_the_scheme_may_be_written_in_any_case(guarded: Guarded) -> None:
    with guarded.client() as client:
        for scheme in ("bearer", "BEARER"):
            headers = {"authorization": f"{scheme}  {guarded.reader}"}
            assert client.get("/checkpoint", headers=headers).status_code == 200


@pytest.mark.parametrize("token", [None, UNKNOWN])
def test_a_stranger_is_answered_before_any_of_the_body_is_sent(
    guarded: Guarded, token: str | None
) -> None:
    authorization = f"Authorization: Bearer {token}\r\n" if token else ""
    head = (
        f"POST /entries HTTP/1.1\r\nHost: journal\r\n{authorization}"
        "Content-Type: application/json\r\nContent-Length: 1000000\r\n\r\n"
    )
    with closing(socket.create_connection(("127.0.0.1", guarded.service.port), 10)) as connection:
        connection.sendall(head.encode())
        assert connection.recv(4096).startswith(b"HTTP/1.1 401 ")


def test_refusals_are_logged_without_the_secret_and_do_not_fill_the_log(
    guarded: Guarded,
) -> None:
    before = len(guarded.service.log)
    password, forged = "correct-horse-battery", "GET /x by operator"
    with guarded.client() as stranger:
        for _ in range(50):
            refused(stranger.get("/checkpoint", headers=bearing(UNKNOWN)), 40102)
            refused(stranger.get("/checkpoint", headers=bearing(password)), 40102)
            refused(stranger.get(f"/a%0A{forged}", headers=bearing(guarded.writer)), 40301)
    log = guarded.service.log
    assert id_of(digest_of(UNKNOWN.encode())) in log
    for secret in (UNKNOWN, password, *guarded[2:]):
        assert secret not in log
        assert secret.removeprefix(PREFIX) not in log
    # Nor the hash of what was no token: a password could be found by trying.
    assert id_of(digest_of(password.encode())) not in log
    assert f"\n{forged}" not in log
    assert len(re.findall("token_invalid|scope_missing", log[before:])) < 10


def test_a_quota_of_entries_per_second_holds_for_its_token_alone(
    guarded: Guarded, admin: httpx.Client
) -> None:
    limited = guarded.tokens.add("limited", Scope.ADMIN, entries_per_s=10)
    guarded.reload()
    with guarded.client(limited) as client:
        wait_for(lambda: client.get("/checkpoint").status_code == 200, "the token is known")
        accepted(post(client, *(json_entry() for _ in range(1000))))
        counted, before = rejections(admin, "over_quota"), durable_offset(admin)
        response = post(client, json_entry())
        assert "10 entries per second" in refused(response, 42901, retriable=True)["detail"]
        assert 90 < int(response.headers["retry-after"]) <= 99
        # What it does not need to be over for.
        assert client.post("/flush").status_code == 200
        assert durable_offset(admin) == before
        assert rejections(admin, "over_quota") == counted + 1
        # Reading the file again forgives nothing.
        guarded.tokens.add("another", Scope.READ)
        guarded.reload()
        wait_for(lambda: "another (" in guarded.service.log, "the file is read again")
        refused(post(client, json_entry()), 42901, retriable=True)
    accepted(post(admin, json_entry()))


def test_sighup_takes_new_tokens_in_and_revoked_ones_out_and_a_bad_file_changes_nothing(
    guarded: Guarded,
) -> None:
    worker = guarded.service.worker_pid
    old = guarded.tokens.add("rotated", Scope.READ)
    new = guarded.tokens.add("rotated", Scope.READ)
    guarded.reload()
    with guarded.client(old) as before, guarded.client(new) as after:
        wait_for(lambda: after.get("/checkpoint").status_code == 200, "the new token is good")
        # Both are, for the time of the change.
        assert checkpoint(before)
        content = guarded.tokens.path.read_bytes()
        guarded.tokens.remove("rotated")
        guarded.reload()
        wait_for(lambda: before.get("/checkpoint").status_code == 401, "the token is revoked")
        guarded.tokens.path.write_bytes(content)
        guarded.reload()
        wait_for(lambda: after.get("/checkpoint").status_code == 200, "the token is back")

        for spoil in (
            lambda: guarded.tokens.path.write_bytes(content[:-20]),
            lambda: guarded.tokens.path.chmod(0o644),
            guarded.tokens.path.unlink,
        ):
            said = guarded.service.log.count("stay in force")
            spoil()
            guarded.reload()
            wait_for(lambda: guarded.service.log.count("stay in force") > said, "it is logged")  # noqa: B023
            assert checkpoint(after)
        guarded.tokens.path.write_bytes(content)
        guarded.tokens.path.chmod(0o600)
    assert guarded.service.worker_pid == worker


def test_a_stream_of_blocks_ends_when_its_token_is_revoked(
    guarded: Guarded, admin: httpx.Client
) -> None:
    token = guarded.tokens.add("watcher", Scope.READ)
    guarded.reload()
    with guarded.client(token) as client:
        wait_for(lambda: client.get("/checkpoint").status_code == 200, "the token is good")
        with client.stream("GET", "/blocks/stream") as stream:
            lines = stream.iter_lines()
            first = accepted(post(admin, json_entry(command_type="TickSnapshot")))["block_height"]
            assert f"id: {first}" in lines
            guarded.tokens.remove("watcher")
            guarded.reload()
            with guarded.client(token) as other:
                wait_for(lambda: other.get("/checkpoint").status_code == 401, "it is revoked")
            second = accepted(post(admin, json_entry(command_type="TickSnapshot")))["block_height"]
            assert f"id: {second}" not in lines


def test_a_file_that_can_not_be_used_refuses_the_start_in_one_line(
    make_service: MakeService,
) -> None:
    service = make_service()
    path = TokensFile(service.data_dir.with_name("tokens.json")).path
    path.chmod(0o640)
    status, log = service.start_refused(TOKENS_FILE=path)
    assert status == 2
    assert log.count("\n") == 1
    assert f"JOURNAL_TOKENS_FILE='{path}': has the mode 0640" in log
    assert not service.data_dir.exists()


def test_a_stranger_is_told_the_states_of_the_parts_but_no_details_of_them(
    make_service: MakeService,
) -> None:
    """Details name hosts, databases and roles."""
    service = make_service("postgresql://secret-role@127.0.0.1:1/secret-name", ALLOW_NEW_WAL="true")
    tokens = TokensFile(service.data_dir.with_name("tokens.json"))
    reader, writer = tokens.add("reader", Scope.READ), tokens.add("writer", Scope.WRITE)
    service.start(TOKENS_FILE=tokens.path)

    def replication(headers: dict[str, str]) -> dict[str, str]:
        with service.client() as client:
            response = client.get("/readyz", headers=headers)
        assert response.status_code == 200
        part: dict[str, str] = response.json()["parts"]["replication"]
        return part

    def is_explained() -> bool:
        return "connecting" in replication(bearing(reader)).get("detail", "")

    wait_for(is_explained, "replication says what is wrong")
    for headers in ({}, bearing(UNKNOWN), bearing(writer)):
        assert replication(headers) == {"state": "down"}
