"""A client that goes on sending entries, one after another, while something else happens."""

import threading
from types import TracebackType
from typing import Final, Self

import httpx

from tests.support.http_entries import MSGPACK, msgpack_entry, packed
from tests.support.service import Service
from tests.support.waiting import wait_for

_HEADERS: Final = {"content-type": MSGPACK}


class HonestClient:
    """Sends over HTTP/2 until the end of the block; every answer must be an acknowledgement."""

    def __init__(self, service: Service) -> None:
        self.acknowledged = 0
        self._service = service
        self._failure: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="honest client")

    def __enter__(self) -> Self:
        self._thread.start()
        self.goes_on()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        if self._failure is not None:
            raise AssertionError("an honest client was not served") from self._failure

    def goes_on(self, count: int = 3) -> None:
        """Wait until `count` further entries are acknowledged, on an old connection and a new."""
        until = self.acknowledged + count
        wait_for(
            lambda: self.acknowledged >= until or self._failure, "honest entries are acknowledged"
        )
        with self._service.client(http2=True, verify=self._service.tls) as client:
            self._send(client)

    def _run(self) -> None:
        try:
            with self._service.client(http2=True, verify=self._service.tls) as client:
                while not self._stop.is_set():
                    self._send(client)
                    self.acknowledged += 1
        except (httpx.HTTPError, AssertionError) as error:
            self._failure = error

    def _send(self, client: httpx.Client) -> None:
        response = client.post("/entries", content=packed(msgpack_entry()), headers=_HEADERS)
        assert response.status_code == 200, response.text
