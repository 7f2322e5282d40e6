"""`journal serve`: granian's supervisor with the one worker that owns the data directory.

On SIGTERM or SIGINT the worker drains first, to the log and to Postgres, with its port still open,
so that clients get a clear 503 and queued entries their acknowledgement; then the server stops as
it always does. On a second one it stops at once: what was acknowledged is in the log, and is
replicated after the next start. On SIGHUP the worker reads TOKENS_FILE again.
"""

import logging
import multiprocessing
import os
import signal
import socket
import ssl
import sys
from logging.config import dictConfig
from threading import Timer
from typing import Any, Final

from granian import Granian
from granian.constants import HTTPModes, Interfaces, Loops
from granian.http import HTTP1Settings, HTTP2Settings

from app.api.connections import STREAMS_AT_ONCE, WINDOW_BYTES, max_connections
from app.embedded import check_path
from app.errors import SettingsError
from app.logs import logging_config
from app.main import DRAIN_SIGNAL, DRAINED_SIGNAL, RELOAD_SIGNAL, SUPERVISED_ENV
from app.secret_file import check_private_key
from app.settings import Settings, is_loopback, setting_name
from app.tokens import read_tokens

_log = logging.getLogger(__name__)

_GRACE_S: Final = 5
_FRAME_BYTES: Final = 1 << 20


def run(settings: Settings) -> int:
    """Serve until stopped; returns the exit status: 0 after a clean stop, else not 0.

    Raises `SettingsError` when it can't listen, or keep its data, as it is told to.
    """
    if settings.embedded:
        check_path(settings.data_dir / "postgres")
    dictConfig(logging_config(settings.log_format, settings.log_level))
    _check_listening(settings)
    _check_tokens(settings)
    os.environ[SUPERVISED_ENV] = str(os.getpid())
    try:
        server = make_server(settings)
    except OSError as error:
        raise SettingsError(
            f"JOURNAL_TLS_CERT='{settings.tls_cert}', JOURNAL_TLS_KEY='{settings.tls_key}': "
            f"{error}; PEM files of a certificate chain and of its private key are allowed"
        ) from None
    _check_tls(settings)
    _take_signals(server, settings.shutdown_timeout_s)
    try:
        server.serve()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    return 0


def make_server(settings: Settings, application: str = "app.main:app") -> Any:
    """The HTTP server in front of `application` (`module:name`); nothing runs yet."""
    return Granian(
        application,
        address=settings.host,
        port=settings.port,
        interface=Interfaces.ASGI,
        workers=1,
        loop=Loops.uvloop,
        http=HTTPModes.auto,
        websockets=False,
        backpressure=max_connections(settings.channel_capacity),
        http1_settings=HTTP1Settings(header_read_timeout=round(settings.header_timeout_s * 1000)),
        http2_settings=HTTP2Settings(
            initial_connection_window_size=WINDOW_BYTES,
            initial_stream_window_size=WINDOW_BYTES,
            max_frame_size=_FRAME_BYTES,
            max_headers_size=64 * 1024,
            max_concurrent_streams=STREAMS_AT_ONCE,
        ),
        log_dictconfig=logging_config(settings.log_format, settings.log_level),
        ssl_cert=settings.tls_cert,
        ssl_key=settings.tls_key,
        ssl_ca=settings.tls_client_ca,
        ssl_client_verify=settings.tls_client_ca is not None,
        workers_kill_timeout=_GRACE_S,
    )


def _check_listening(settings: Settings) -> None:
    """Make sure that the port is free: the server would share it (SO_REUSEPORT) with another."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        socket.create_server((settings.host, settings.port), family=family).close()
    except OSError as error:
        raise SettingsError(
            f"JOURNAL_HOST='{settings.host}', JOURNAL_PORT='{settings.port}': {error.strerror}; "
            "an address of this machine and a free port are allowed"
        ) from None


def _check_tls(settings: Settings) -> None:
    """Make sure of what the server does not look at before its first client."""
    if settings.tls_key is not None:
        check_private_key(setting_name("tls_key"), settings.tls_key)
    authorities = settings.tls_client_ca
    if authorities is None:
        return
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=authorities)
    except OSError as error:
        raise SettingsError(
            f"JOURNAL_TLS_CLIENT_CA='{authorities}': {error}; a PEM file with the certificates of "
            "authorities is allowed"
        ) from None


def _check_tokens(settings: Settings) -> None:
    """Make sure that the worker can read the tokens, and say where they could be overheard."""
    if settings.tokens_file is None:
        return
    read_tokens(setting_name("tokens_file"), settings.tokens_file)
    if settings.tls_cert is None and not is_loopback(settings.host):
        _log.warning(
            "JOURNAL_HOST='%s' without JOURNAL_TLS_CERT: who can listen in on the network reads "
            "the tokens, unless a proxy in front speaks TLS",
            settings.host,
        )


def _take_signals(server: Any, timeout_s: float) -> None:
    """Put the draining of the worker in front of the server's own stop, and pass SIGHUP on."""
    # Blocked here and so in the worker from its birth, until it is ready to listen: none is lost.
    signal.pthread_sigmask(signal.SIG_BLOCK, {DRAIN_SIGNAL, RELOAD_SIGNAL})
    # Until the server below has set its own handlers, and these have taken their place.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})

    def tell_workers(number: int) -> bool:
        """Send a signal to every worker there is; whether there is one."""
        workers = [child.pid for child in multiprocessing.active_children() if child.pid]
        for pid in workers:
            os.kill(pid, number)
        return bool(workers)

    def intercept() -> None:
        stop = signal.getsignal(signal.SIGTERM)
        asked = False

        def stop_now(*_: object) -> None:
            if callable(stop):
                stop(signal.SIGTERM, None)

        def on_signal(*_: object) -> None:
            nonlocal asked
            if not tell_workers(signal.SIGKILL if asked else DRAIN_SIGNAL) or asked:
                stop_now()
                return
            asked = True
            timer = Timer(timeout_s + _GRACE_S, stop_now)
            timer.daemon = True
            timer.start()

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, on_signal)
        signal.signal(signal.SIGHUP, lambda *_: tell_workers(RELOAD_SIGNAL))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
        signal.signal(DRAINED_SIGNAL, stop_now)

    server.on_startup(intercept)


if __name__ == "__main__":
    from app.settings import load_settings

    sys.exit(run(load_settings()))
