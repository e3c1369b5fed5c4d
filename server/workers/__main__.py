"""`python -m server.workers NUMBER CHANNEL LISTENER`: a worker, started by `server.workers.process`.

CHANNEL is a socket to the supervisor and LISTENER the one that clients connect to, inherited descriptors.
"""

import socket
import sys

from server.workers.worker import work

if __name__ == "__main__":
    number, channel, listener = map(int, sys.argv[1:])
    work(number, socket.socket(fileno=channel), socket.socket(fileno=listener))
