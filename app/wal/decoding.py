"""Decoding what may be nested as deeply as the API could accept it.

Entries are journaled as they were sent. A value that a second one of the same key hides is bounded
by nothing but the interpreter's recursion limit, which counts the calls around the decoder as well.
Those of a new thread are fewer than those around the API's: there it can be decoded, wherever else
it can't. What was decoded so can be encoded again in the same way.
"""

from collections.abc import Callable
from functools import partial
from threading import Thread
from typing import TypeVar

import msgspec
from msgspec import Raw

from app.model.entry import Entry
from app.wal import record
from app.wal.record import Batch, Genesis, KeyedBatch, RawBatch

Payload = bytes | bytearray | memoryview
Data = TypeVar("Data")
Result = TypeVar("Result")


def decode_raw(payload: Payload) -> Genesis | RawBatch:
    """Decode a payload, commands left encoded. Raises `msgspec.DecodeError`."""
    return _decoded(record.decode_raw, payload)


def decode_record(payload: Payload) -> Genesis | Batch:
    """Decode a payload with its commands. Raises `msgspec.DecodeError`."""
    return _decoded(record.decode_record, payload)


def decode_keyed(payload: Payload) -> Genesis | KeyedBatch:
    """Decode a payload with nothing but the keys of its commands. Raises `msgspec.DecodeError`."""
    return _decoded(record.decode_keyed, payload)


def decode_command(command: Raw) -> Entry:
    """Decode one command of a `RawBatch`. Raises `msgspec.DecodeError`."""
    return _decoded(record.decode_command, command)


def at_any_depth(call: Callable[[], Result]) -> Result:
    """What `call` returns or raises, on a new thread if the calls around it leave it too few."""
    try:
        return call()
    except RecursionError:
        pass
    results: list[Result] = []
    errors: list[Exception] = []

    def call_anew() -> None:
        try:
            results.append(call())
        except Exception as error:  # noqa: BLE001 - raised where it was called
            errors.append(error)

    thread = Thread(target=call_anew, name="deep-call")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def _decoded(decode: Callable[[Data], Result], data: Data) -> Result:
    try:
        return at_any_depth(partial(decode, data))
    except UnicodeDecodeError as error:
        raise msgspec.DecodeError(f"text is not valid UTF-8: {error}") from error
    except RecursionError as error:
        raise msgspec.DecodeError("nested too deeply") from error
