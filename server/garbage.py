"""Python's garbage collection in processes that run for months."""

import gc


def keep_for_good() -> None:
    """What is there now stays to the end: no collection looks at it again, which would hold up requests.

    Modules, routes and schemas are some eighty thousand objects, a request a few dozen.
    """
    gc.collect()
    gc.freeze()
