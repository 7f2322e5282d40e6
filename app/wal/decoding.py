"""Decoding what may be nested as deeply as the API could accept it.

Entries are journaled as they were sent. A value that a second one of the same key hides is bounded
by nothing but the interpreter's recursion limit, which counts the calls around the decoder as well.
Those of a new thread are fewer than those around the API's: there it can be decoded, wherever else
it can't.
"""

from collections.abc import Callable
from threading import Thread
from typing import TypeVar

import msgspec

from app.wal import record
from app.wal.record import Batch, Genesis, KeyedBatch, RawBatch

Payload = bytes | bytearray | memoryview
Data = TypeVar("Data")
Decoded = TypeVar("Decoded")


def decode_raw(payload: Payload) -> Genesis | RawBatch:
    """Decode a payload, commands left encoded. Raises `msgspec.DecodeError`."""
    return _at_any_depth(record.decode_raw, payload)


def decode_record(payload: Payload) -> Genesis | Batch:
    """Decode a payload with its commands. Raises `msgspec.DecodeError`."""
    return _at_any_depth(record.decode_record, payload)


def decode_keyed(payload: Payload) -> Genesis | KeyedBatch:
    """Decode a payload with nothing but the keys of its commands. Raises `msgspec.DecodeError`."""
    return _at_any_depth(record.decode_keyed, payload)


def _at_any_depth(decode: Callable[[Data], Decoded], data: Data) -> Decoded:
    try:
        return decode(data)
    except UnicodeDecodeError as error:
        raise _invalid_text(error) from error
    except RecursionError:
        pass
    found: list[Decoded] = []
    faults: list[Exception] = []

    def decode_anew() -> None:
        try:
            found.append(decode(data))
        except RecursionError:
            faults.append(msgspec.DecodeError("nested too deeply"))
        except UnicodeDecodeError as error:
            faults.append(_invalid_text(error))
        except msgspec.DecodeError as error:
            faults.append(error)

    thread = Thread(target=decode_anew, name="deep-decoder")
    thread.start()
    thread.join()
    if faults:
        raise faults[0]
    return found[0]


def _invalid_text(error: UnicodeDecodeError) -> msgspec.DecodeError:
    return msgspec.DecodeError(f"text is not valid UTF-8: {error}")
