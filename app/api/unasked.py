"""What a connection sends that belongs to no request: only its HTTP layer has the work of it.

Header blocks that ask for nothing, and frames that do nothing, never reach the service, which would
know them by what they are. It knows what did reach it, and the kernel how much came.
"""

from typing import Final

# A connection may send so much more than it asks with, and so much more each second.
MAX_UNASKED_BYTES: Final = 256 << 10
UNASKED_BYTES_PER_S: Final = 64 << 10
# What is around a request and around a part of its body, at most, of an honest client: headers,
# frames, records of TLS.
_REQUEST_BYTES: Final = 4096
_PART_BYTES: Final = 64
_PART_SHARE: Final = 16


class Unasked:
    """Counts what came against what was asked."""

    __slots__ = ("_promised_bytes", "_received_bytes", "balance_bytes")

    def __init__(self) -> None:
        # What came and has not been asked with.
        self.balance_bytes = self._received_bytes = 0
        # So much of what comes next is of no account.
        self._promised_bytes = 0

    def request(self) -> None:
        """A request has begun."""
        self.balance_bytes -= _REQUEST_BYTES

    def part(self, size_bytes: int) -> None:
        """So much of the body of one was read."""
        self.balance_bytes -= size_bytes + size_bytes // _PART_SHARE + _PART_BYTES

    def unread(self, size_bytes: int) -> None:
        """So much of bodies that nobody reads any more may have come, or still come."""
        came_bytes = min(self.balance_bytes, size_bytes)
        self.balance_bytes -= came_bytes
        self._promised_bytes = max(self._promised_bytes, size_bytes - came_bytes)

    def overdue_bytes(self, received_bytes: int, elapsed_s: float) -> int:
        """How much had come by the last time this was asked, and still belongs to no request.

        What came since may be on its way to the service. `received_bytes` came so far, `elapsed_s`
        have passed since the last time.
        """
        came_bytes = received_bytes - self._received_bytes
        self._received_bytes = received_bytes
        promised_bytes = min(came_bytes, self._promised_bytes)
        self._promised_bytes -= promised_bytes
        came_bytes -= promised_bytes
        borne_bytes = int(UNASKED_BYTES_PER_S * elapsed_s)
        self.balance_bytes = max(0, self.balance_bytes + came_bytes - borne_bytes)
        return self.balance_bytes - came_bytes
