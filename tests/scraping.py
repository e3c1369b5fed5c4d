"""What a server's /metrics say, read as Prometheus reads it."""

from collections.abc import Iterable
from dataclasses import dataclass

import httpx
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


@dataclass(frozen=True)
class Scraped:
    """All samples of one scrape."""

    metrics: list[Metric]

    @property
    def samples(self) -> Iterable[tuple[str, dict[str, str], float]]:
        for metric in self.metrics:
            for sample in metric.samples:
                yield sample.name, sample.labels, sample.value

    def __call__(self, name: str, **labels: str) -> float:
        """The sum of the samples of this name that have these labels; there has to be one."""
        found = [v for n, has, v in self.samples if n == name and labels.items() <= has.items()]
        assert found, f"no sample of {name} with {labels}"
        return sum(found)

    def has(self, name: str, **labels: str) -> bool:
        return any(n == name and labels.items() <= has.items() for n, has, _ in self.samples)

    def values_of(self, label: str) -> set[str]:
        return {has[label] for _, has, _ in self.samples if label in has}


def scrape(url: str, accept: str = "text/plain") -> Scraped:
    answer = httpx.get(f"{url}/metrics", headers={"Accept": accept}, timeout=10)
    assert answer.status_code == 200, answer.text
    parse = parse_openmetrics if answer.headers["content-type"].startswith("application/open") else parse_text
    return Scraped(list(parse(answer.text)))
