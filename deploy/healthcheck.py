"""For the image's HEALTHCHECK: whether the service in this container answers `GET /healthz`.

Exits with 0 when it does. Under TLS the certificate is not checked: it is issued for the service's
public name, and the connection never leaves the container. Where clients need certificates, which
this one has not, it is enough that the server shakes hands.
"""

import os
import socket
import ssl
import sys
from http.client import HTTPConnection, HTTPException, HTTPSConnection

TIMEOUT_S = 2.0
OK = 200


def main() -> int:
    """Ask once; return the exit code."""
    port = int(os.environ.get("JOURNAL_PORT", "8080"))
    connection = HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    try:
        if os.environ.get("JOURNAL_TLS_CLIENT_CA"):
            with socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as plain:
                _unverified().wrap_socket(plain).close()
            return 0
        if os.environ.get("JOURNAL_TLS_CERT"):
            context = _unverified()
            connection = HTTPSConnection("127.0.0.1", port, timeout=TIMEOUT_S, context=context)
        connection.request("GET", "/healthz")
        status = connection.getresponse().status
    except (OSError, HTTPException) as error:
        sys.stderr.write(f"/healthz: {error}\n")
        return 1
    return 0 if status == OK else 1


def _unverified() -> ssl.SSLContext:
    return ssl._create_unverified_context()  # noqa: S323, SLF001 - see above


if __name__ == "__main__":
    sys.exit(main())
