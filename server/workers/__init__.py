"""Several processes that answer requests (`--workers N`), in front of engines that they share.

    messages.py    what the supervisor and a worker say to each other
    channel.py     how: questions and answers over a socket, with descriptors
    shares.py      what of the settings each worker is told
    counting.py    the directory in which all of them count together
    usage.py       memory, files and processor time of all of them
    process.py     a worker as the supervisor sees it: start, watch, stop
    supervisor.py  owns the socket, the engines and the workers
    given.py       the models of a worker: what the supervisor gives it
    accepting.py   which worker lets a client in
    worker.py      a worker; __main__.py starts it

With one worker, the process that answers requests owns the engines, and nothing of this is used.
"""
