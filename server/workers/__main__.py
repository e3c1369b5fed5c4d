"""`python -m server.workers NUMBER CHANNEL LISTENER LOADS`: a worker, started by `server.workers.process`.

CHANNEL is a socket to the supervisor, LISTENER the one that clients connect to, and LOADS memory that all
workers share; inherited descriptors.
"""

import socket
import sys

from server.workers.accepting import Loads
from server.workers.worker import work

if __name__ == "__main__":
    number, channel, listener, loads = map(int, sys.argv[1:])
    work(number, socket.socket(fileno=channel), socket.socket(fileno=listener), Loads(loads))
