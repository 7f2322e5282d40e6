"""Journal two entries with the project's client, and the same two again, which changes nothing.

Run it against a service on this machine: `.venv/bin/python examples/append.py [URL]`. Where
that has tokens, JOURNAL_TOKEN is shown; it needs the scopes `write` and `read`.
"""

import asyncio
import os
import sys
import time
from decimal import Decimal
from uuid import uuid4

import msgspec

from app.client import DEFAULT_URL, JournalClient
from app.model.accounting import FillAccounting, fill_side_effect
from app.model.entry import Entry, Event

WIRE_VERSION = b"\x01"


def wire(content: dict[str, object]) -> bytes:
    """The wire format of command and event data: a version byte, then MessagePack."""
    return WIRE_VERSION + msgspec.msgpack.encode(content)


def fill_entry() -> Entry:
    """An order that was filled, with its event and the effects on both ledgers."""
    accounting = FillAccounting(
        trade_id=42,
        taker_realized_pnl=Decimal("-1.25"),
        maker_realized_pnl=Decimal("1.25"),
        taker_premium_delta=Decimal("-0.07"),
        maker_premium_delta=Decimal("0.07"),
        taker_net_cash_delta=Decimal("-1.32"),
        maker_net_cash_delta=Decimal("1.32"),
    )
    return Entry(
        request_uuid=uuid4(),
        received_ts_ms=time.time_ns() // 10**6,
        command_type="CreateOrder",
        command_data=wire({"side": "B", "price": "4799", "size": 2}),
        order_id=7,
        events=[
            Event(
                event_topic="fills",
                event_key="7",
                event_data=wire({"order_id": 7, "size": 2}),
                event_type="OrderFilled",
            )
        ],
        fill_side_effects=[fill_side_effect(0, accounting)],
    )


async def main() -> None:
    """Append, append again, look one of them up."""
    entries = [fill_entry(), fill_entry()]
    token = os.environ.get("JOURNAL_TOKEN")
    url = sys.argv[1] if len(sys.argv) > 1 else DEFAULT_URL
    async with JournalClient(url, token=token) as client:
        first = await client.append(entries)
        again = await client.append(entries)
        status = await client.entry(entries[0].request_uuid)
    print(f"durable: commands {first.first_command_id} to {first.last_command_id}")
    print(f"sent again: {len(again.duplicates)} duplicates")
    print(f"looked up: {status}")


if __name__ == "__main__":
    asyncio.run(main())
