"""How fast a run goes, what it waits for, and when it will be done."""

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

from lct_deploy.progress import progress_bar, stderr
from lct_deploy.train.state import Standing

_LINE_SECONDS = 60.0  # between lines where no terminal shows a bar


class Meter:
    """One session of a run of `epochs` epochs of `steps` steps, some of which may be done already."""

    def __init__(self, standing: Standing, *, epochs: int, steps: int) -> None:
        self._standing, self._epochs, self._steps = standing, epochs, steps
        self._first, self._before = self._done, standing.seconds
        self._started = self._said = self._stepped = time.monotonic()

    @contextmanager
    def epoch(self) -> Generator[Callable[[], None]]:
        """A bar over the steps of an epoch; what it gives is called after each of them."""
        standing = self._standing
        name = f"epoch {standing.epoch}/{self._epochs}"
        with progress_bar() as bar:
            task = bar.add_task(name, total=self._steps, completed=standing.step, status="")
            self._stepped = time.monotonic()

            def stepped() -> None:
                self._step()
                bar.update(task, completed=standing.step, status=self._status())

            yield stepped

    @contextmanager
    def waiting(self) -> Generator[None]:
        """Time counts as waiting for images."""
        started = time.monotonic()
        yield
        self._standing.waited += time.monotonic() - started

    def seconds(self) -> float:
        """Of the run up to now, over all its sessions."""
        return self._before + time.monotonic() - self._started

    def time_left(self) -> str:
        """Of the run, in words, from the pace of this session with its tests."""
        done, left = self._done - self._first, self._epochs * self._steps - self._done
        return describe_seconds((time.monotonic() - self._started) / max(done, 1) * left)

    @property
    def _done(self) -> int:
        return len(self._standing.history) * self._steps + self._standing.step

    def _step(self) -> None:
        standing, now = self._standing, time.monotonic()
        standing.trained += now - self._stepped
        standing.seconds = self.seconds()
        self._stepped = now
        if now - self._said >= _LINE_SECONDS and not stderr.is_terminal:
            self._said = now
            where = f"epoch {standing.epoch}/{self._epochs}, step {standing.step}/{self._steps}"
            stderr.print(f"{where}: {self._status()}")

    def _status(self) -> str:
        standing = self._standing
        if not standing.images:  # a loss is known once the step after it has begun
            return f"{self.time_left()} left"
        return (
            f"loss {standing.loss / standing.images:.3f}, {standing.images_per_second:.0f} images/s, "
            f"waiting for data {standing.data_wait:.1f} %, {self.time_left()} left"
        )


def describe_seconds(seconds: float) -> str:
    """`42 s`, `12 min` or `3 h 05 min`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"
