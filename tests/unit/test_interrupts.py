"""Ctrl-C at a moment when nothing but the signal itself wakes the loop of a command."""

import signal
import subprocess
import sys
from typing import Final

import psutil

from tests.support.waiting import wait_for

# What another thread gets interrupts no wait of the main thread's, as what comes just before one.
PROGRAM: Final = """
import asyncio, signal, threading
from app.cli.interrupts import run

async def wait():
    print("begun", flush=True)
    await asyncio.Event().wait()

threading.Thread(target=threading.Event().wait, daemon=True).start()
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
try:
    run(wait())
except KeyboardInterrupt:
    print("interrupted")
"""


def test_a_signal_that_interrupts_no_wait_is_noticed() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "begun\n"
            status = psutil.Process(process.pid).status
            wait_for(lambda: status() == psutil.STATUS_SLEEPING, "the loop waits")
            process.send_signal(signal.SIGINT)
            assert process.communicate(timeout=30)[0] == "interrupted\n"
        finally:
            process.kill()
