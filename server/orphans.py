"""Processes that end with the one that started them, however that ends."""

import os
import select
import socket
import threading
import time


def end_with(link: socket.socket, seconds: float) -> None:
    """End this process `seconds` after the other end of `link` was closed, if it has not ended by itself.

    A thread sees to it: whatever hangs here, nobody else would end it.
    """
    # A descriptor of its own, which stays open when `link` is closed.
    threading.Thread(target=_end_after, args=(os.dup(link.fileno()), seconds), daemon=True).start()


def _end_after(descriptor: int, seconds: float) -> None:
    hung_up = select.poll()
    hung_up.register(descriptor, 0)  # a hang-up alone
    hung_up.poll()
    time.sleep(seconds)
    os._exit(1)
