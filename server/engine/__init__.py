"""The process that runs a model: it forms batches of what the HTTP processes send it, and infers them.

A process of its own, so that a crash or a hang of a runtime costs the requests that it was computing
and no other. Images and logits lie in memory that both sides share; what passes between them are short
messages over a socket.

    config.py      what an engine is told when it starts, and what it says of itself
    slots.py       the shared memory
    messages.py    what is said over the sockets
    batcher.py     which requests run together
    statistics.py  what has been run so far
    connection.py  one HTTP process, as the engine sees it
    engine.py      the engine's loop; __main__.py starts it
    process.py     the engine as its parent sees it: start, watch, stop
    client.py      the engine as a request sees it: reserve, infer
"""
