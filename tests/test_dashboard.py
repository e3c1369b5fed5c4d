"""The dashboard, the alerts and docs/observability.md speak of what a real server tells."""

import json
import re
import shutil
import subprocess
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml

from docs.make_dashboard import DASHBOARD, dashboard_text
from tests.promql import AskedInVainError, known_from, labels_of, require
from tests.scraping import Scraped, scrape
from tests.serving import Server, classify, encoded, upload
from tests.test_engine import wait_for

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "observability.md"
ALERTS = ROOT / "docs" / "observability" / "alerts.yml"
# What stands for a time in Grafana's queries.
TIMES = {"$__rate_interval": "5m", "$__range": "3h"}


@pytest.fixture(scope="module")
def server(demo_bundle: Path) -> Generator[Server]:
    """One that has answered requests of both protocols."""
    with Server(demo_bundle) as running, httpx.Client(base_url=running.url, timeout=60) as http:
        classify(http, encoded())
        upload(http, encoded(0), encoded(1), b"no image")
        tensor = {"name": "image", "shape": [1, 28, 28, 3], "datatype": "UINT8"}
        pixels = np.zeros(28 * 28 * 3, np.uint8).tolist()
        answer = http.post("/v2/models/demo/infer", json={"inputs": [tensor | {"data": pixels}]})
        assert answer.status_code == 200, answer.text
        http.get("/nowhere", headers={"traceparent": f"00-{'1' * 32}-{'2' * 16}-01"})
        wait_for(lambda: scrape(running.url)("lct_requests_in_flight") == 0)
        yield running


@pytest.fixture(scope="module")
def scraped(server: Server) -> Scraped:
    return scrape(server.url)


@pytest.fixture(scope="module")
def known(scraped: Scraped) -> dict[str, dict[str, set[str]]]:
    """What can be asked for: what was scraped, and what the rules make of it."""
    known = known_from(scraped)
    for rule in rules():
        if "record" in rule:
            known[rule["record"]] = {label: set() for label in labels_of(rule["expr"], known)}
    return known


def panels() -> list[dict[str, Any]]:
    return [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]


def variables() -> Iterator[tuple[str, str]]:
    """Those that Prometheus is asked for the values of: the query, and the label."""
    for variable in json.loads(DASHBOARD.read_text())["templating"]["list"]:
        if variable["type"] == "query":
            match = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"])
            assert match is not None
            assert match[2] == variable["name"]
            yield match[1], match[2]


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def alerts() -> list[dict[str, Any]]:
    return [rule for rule in rules() if "alert" in rule]


def of_grafana(query: str) -> str:
    for name, time in TIMES.items():
        query = query.replace(name, time)
    return query


# What is asked exists


def test_every_panel_asks_for_what_there_is(known: dict[str, dict[str, set[str]]]) -> None:
    asked = [target for panel in panels() for target in panel["targets"]]
    for target in asked:
        labels = labels_of(of_grafana(target["expr"]), known)
        # A heatmap's legend are its buckets.
        require(re.findall(r"{{(\w+)}}", target["legendFormat"]), labels, target["expr"])
    for query, label in variables():
        require([label], labels_of(query, known), query)
    assert len(asked) > 20


def test_every_alert_asks_for_what_there_is_and_tells_what_it_was_told(
    known: dict[str, dict[str, set[str]]],
) -> None:
    for alert in alerts():
        labels = labels_of(alert["expr"], known)
        require(re.findall(r"\$labels\.(\w+)", str(alert["annotations"])), labels, alert["alert"])


def test_everything_that_is_counted_is_shown(known: dict[str, dict[str, set[str]]]) -> None:
    """Of a histogram any part will do; Triton's names are for dashboards that exist."""
    shown = {
        name for panel in panels() for target in panel["targets"] for name in known if name in target["expr"]
    }
    families = {re.sub("_(bucket|sum|count)$", "", name) for name in known if name.startswith("lct_")}
    assert families - {re.sub("_(bucket|sum|count)$", "", name) for name in shown} == set()


@pytest.mark.parametrize(
    ("query", "complaint"),
    [
        ("rate(lct_requests[5m])", "no metric lct_requests"),
        ("sum(rate(lct_request_duration_seconds[5m]))", "no metric lct_request_duration_seconds"),
        ("lct_ready == 0 or lct_made_up > 1", "no metric lct_made_up"),
        ('lct_ready{model="demo"}', "no label model in lct_ready"),
        ('lct_requests_total{outcome=~"failed|lost"}', "is never lost"),
        ("sum by (route) (lct_requests_total)", "no label route"),
        ("lct_ready and on (model) lct_model_ready", "no label model"),
        ("lct_queue_images / lct_requests_in_flight", "never matches"),
        ("histogram_quantile(0.9, sum by (le) (lct_batch_size_images_count))", "no label le"),
    ],
)
def test_what_does_not_exist_would_be_found(
    known: dict[str, dict[str, set[str]]], query: str, complaint: str
) -> None:
    with pytest.raises(AskedInVainError, match=complaint):
        labels_of(query, known)


def test_what_is_no_query_would_be_found(known: dict[str, dict[str, set[str]]]) -> None:
    with pytest.raises(ValueError, match="unclosed"):
        labels_of("sum(lct_ready", known)


# The files themselves


def test_the_dashboard_is_up_to_date() -> None:
    assert DASHBOARD.read_text(encoding="utf-8") == dashboard_text(), "run: make docs"


def test_the_dashboard_can_be_loaded_anywhere() -> None:
    """Its data source is a choice, and no panel covers another."""
    dashboard = json.loads(DASHBOARD.read_text())
    sources = [thing["datasource"]["uid"] for panel in panels() for thing in (panel, *panel["targets"])]
    assert set(sources) == {"${datasource}"}
    assert [v["name"] for v in dashboard["templating"]["list"]] == [
        "datasource",
        "instance",
        "model",
        "version",
    ]
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    taken = [cell for panel in dashboard["panels"] for cell in cells(panel["gridPos"])]
    assert len(set(taken)) == len(taken)
    assert all(x < 24 for x, _ in taken)


def cells(place: dict[str, int]) -> list[tuple[int, int]]:
    xs, ys = range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
    return [(x, y) for x in xs for y in ys]


def test_every_alert_says_how_bad_it_is_and_what_to_do() -> None:
    for alert in alerts():
        assert alert["labels"]["severity"] in ("critical", "warning")
        assert set(alert["annotations"]) == {"summary", "description", "runbook"}
        page, _, anchor = alert["annotations"]["runbook"].partition("#")
        assert anchor in anchors(ROOT / page), alert["alert"]


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (apt: prometheus)")
def test_alerts_fire_when_they_should() -> None:
    checked = ["promtool", "check", "rules", str(ALERTS)]
    tested = ["promtool", "test", "rules", str(ROOT / "tests" / "alerts_test.yml")]
    for command in (checked, tested):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_situation_in_which_it_fires() -> None:
    tested = (ROOT / "tests" / "alerts_test.yml").read_text()
    assert [a["alert"] for a in alerts() if f'ALERTS{{alertname="{a["alert"]}"' not in tested] == []


# The page


def test_the_page_lists_every_metric(scraped: Scraped) -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|([\w, ]*)\| \S", PAGE.read_text(), re.MULTILINE)
    documented = {name: (kind, set(re.findall(r"\w+", labels))) for name, kind, labels in rows}
    told = {
        metric.name + "_total" * (metric.type == "counter"): (
            metric.type.replace("unknown", "untyped"),
            {label for sample in metric.samples for label in sample.labels} - {"le"},
        )
        for metric in scraped.metrics
    }
    assert documented == told


def test_the_pages_examples_have_the_fields_that_the_log_has(server: Server) -> None:
    examples = [json.loads(line) for line in re.findall(r'^\{"ts".*\}$', PAGE.read_text(), re.MULTILINE)]
    lines = {line["route"]: line for line in server.log() if "route" in line}
    assert [example["route"] for example in examples] == ["/v1/classify", "unmatched"]
    for example in examples:
        assert list(example) == list(lines[example["route"]])


def test_the_page_says_what_each_field_of_the_log_is(server: Server) -> None:
    documented = set(re.findall(r"^\| `(\w+)` \|(?! \w+ \|)", PAGE.read_text(), re.MULTILINE))
    assert {field for line in server.log() for field in line} <= documented


def test_the_page_says_what_each_outcome_is(scraped: Scraped) -> None:
    rows = re.findall(
        r"^\| `(\w+)` \| [^|]+ \| \S", PAGE.read_text().partition("### Outcomes")[2], re.MULTILINE
    )
    assert scraped.values_of("outcome") <= set(rows)
