"""What a process keeps for good is out of the way of its garbage collections."""

import subprocess
import sys

_KEEP = """
import gc
import fastapi
from server.garbage import keep_for_good
before = len(gc.get_objects())
keep_for_good()
later = [[] for _ in range(1000)]
print(before, len(gc.get_objects()))
"""


def test_collections_look_at_what_came_later_only() -> None:
    done = subprocess.run([sys.executable, "-c", _KEEP], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert before > 10_000
    assert 1000 <= after < 2000
