"""What the processes of a server use, told as one: `process_…` as a server of one process has them."""

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector

SECONDS = 1.0  # between two looks
_SUMMED = (
    "process_resident_memory_bytes",
    "process_virtual_memory_bytes",
    "process_open_fds",
    "process_max_fds",
)
_START = "process_start_time_seconds"


class Usage:
    """Of this process; those of all are added up when they are read. One of them gives the start."""

    def __init__(self, *, gives_start: bool = False) -> None:
        registry = CollectorRegistry()
        self._collector = ProcessCollector(registry=CollectorRegistry())
        self._gauges = {
            metric.name: Gauge(
                metric.name, metric.documentation, registry=registry, multiprocess_mode="livesum"
            )
            for metric in self._collector.collect()
            if metric.name in _SUMMED or (gives_start and metric.name == _START)
        }
        self._processor = Counter(
            "process_cpu_seconds", "Total user and system CPU time spent in seconds.", registry=registry
        )
        self._counted = 0.0

    def tell(self) -> None:
        """Look how much it is now."""
        for metric in self._collector.collect():
            value = metric.samples[0].value
            if metric.type == "counter":
                self._processor.inc(value - self._counted)
                self._counted = value
            elif metric.name in self._gauges:
                self._gauges[metric.name].set(value)
