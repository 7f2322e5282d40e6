"""Tokens at the door of the real service: who gets in, what everybody else is told, and no more."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from app.tokens import Scope
from tests.integration.conftest import MakeService
from tests.support.bearer_tokens import TokensFile, bearing
from tests.support.http_entries import (
    MSGPACK,
    accepted,
    decoded,
    durable_offset,
    json_entry,
    metric,
    post,
    refused,
)
from tests.support.service import Service
from tests.support.waiting import wait_for

READS = [
    "/checkpoint",
    "/metrics",
    "/blocks",
    "/openapi.json",
    "/docs",
    "/nothing",
    "/",
    "//healthz",
]


class Guarded(NamedTuple):
    """A running service with tokens in force, and one token of each kind."""

    service: Service
    tokens: TokensFile
    writer: str
    reader: str
    admin: str
    expired: str

    def client(self, token: str | None = None, **options: object) -> httpx.Client:
        headers = {} if token is None else bearing(token)
        return self.service.client(headers=headers, **options)


@pytest.fixture(scope="module")
def guarded(
    tmp_path_factory: pytest.TempPathFactory, shared_database_url: str
) -> Iterator[Guarded]:
    directory = tmp_path_factory.mktemp("access")
    tokens = TokensFile(directory / "tokens.json")
    made = {
        "writer": tokens.add("engine", Scope.WRITE),
        "reader": tokens.add("prometheus", Scope.READ),
        "admin": tokens.add("operator", Scope.ADMIN),
        "expired": tokens.add("former", Scope.ADMIN, expires_in_s=-1),
    }
    with Service(
        directory / "data", shared_database_url, ENVIRONMENT="access", TOKENS_FILE=tokens.path
    ) as service:
        yield Guarded(service.start(), tokens, **made)


def challenge(response: httpx.Response) -> str:
    return str(response.headers["www-authenticate"])


@pytest.mark.parametrize("http2", [False, True], ids=["h1", "h2"])
def test_each_scope_opens_its_own_calls_and_admin_opens_all(guarded: Guarded, http2: bool) -> None:
    with guarded.client(guarded.writer, http2=http2) as writer:
        accepted(post(writer, json_entry()))
        assert writer.post("/flush").status_code == 200
        refused(writer.get("/checkpoint"), 40301)
    with guarded.client(guarded.reader, http2=http2) as reader:
        assert reader.get("/checkpoint").status_code == 200
        assert reader.get("/metrics").status_code == 200
        refused(post(reader, json_entry()), 40301)
        response = reader.post("/flush")
        refused(response, 40301)
        assert challenge(response) == (
            'Bearer realm="journal", error="insufficient_scope", scope="write"'
        )
    with guarded.client(guarded.admin, http2=http2) as admin:
        accepted(post(admin, json_entry()))
        assert admin.post("/flush").status_code == 200
        assert admin.get("/checkpoint").status_code == 200
