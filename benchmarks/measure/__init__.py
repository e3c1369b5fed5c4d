"""How a network's speed is measured: processes that take turns, until their rounds agree."""
