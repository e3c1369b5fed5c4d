"""`python docs/make_dashboard.py`: docs/observability/dashboard.json for Grafana, from what its panels ask.

In the queries MODEL and INSTANCE stand for what is chosen at the top of the dashboard, RATE for the time
that Grafana takes a rate over.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DASHBOARD = Path(__file__).parent / "observability" / "dashboard.json"
SCHEMA_VERSION = 42  # of the classic model; Grafana converts it to what it has become since
WIDTH, HEIGHT = 24, 8
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
INSTANCE = 'instance=~"$instance"'
MODEL = f'{INSTANCE},model=~"$model",version=~"$version"'

# Whose fault a request's end was; the same as in alerts.yml.
OURS = 'outcome=~"rejected|expired|engine_lost|unavailable|failed"'
NOT_THEIRS = 'outcome!~"bad_request|unauthorized|client_gone"'

READY = [
    {
        "type": "value",
        "options": {"0": {"text": "not ready", "color": "red"}, "1": {"text": "ready", "color": "green"}},
    }
]
STACKED = {"stacking": {"mode": "normal", "group": "A"}, "fillOpacity": 40}


@dataclass(frozen=True, kw_only=True)
class Panel:
    """What is asked, by legend, and how it is shown."""

    title: str
    queries: dict[str, str]
    unit: str = "short"
    text: str = ""
    kind: str = "timeseries"
    width: int = 8
    height: int = HEIGHT
    defaults: dict[str, Any] = field(default_factory=dict[str, Any])
    options: dict[str, Any] = field(default_factory=dict[str, Any])
    more: dict[str, Any] = field(default_factory=dict[str, Any])
    target: dict[str, Any] = field(default_factory=dict[str, Any])


def error_ratio(by: str = "") -> str:
    """The share of requests that ended badly by the server's doing, after `by`."""
    bad, all_ = (f"sum{by}(rate(lct_requests_total{{MODEL,{which}}}[RATE]))" for which in (OURS, NOT_THEIRS))
    return f"{bad} / {all_}"


def quantile(q: float, histogram: str, by: str = "") -> str:
    return f"histogram_quantile({q}, sum by (le{by}) (rate({histogram}_bucket{{MODEL}}[RATE])))"


def mean(histogram: str, by: str) -> str:
    total, count = (f"sum by ({by}) (rate({histogram}_{of}{{MODEL}}[RATE]))" for of in ("sum", "count"))
    return f"{total} / {count}"


def stat(title: str, query: str, unit: str = "short", **defaults: Any) -> Panel:
    return Panel(
        title=title,
        queries={"": query},
        unit=unit,
        kind="stat",
        width=4,
        height=4,
        defaults=defaults,
        options={"reduceOptions": {"calcs": ["lastNotNull"]}, "graphMode": "area", "colorMode": "value"},
    )


def thresholds(*steps: tuple[str, float | None]) -> dict[str, Any]:
    return {"mode": "absolute", "steps": [{"color": color, "value": value} for color, value in steps]}


ROWS: dict[str, list[Panel]] = {
    "Now": [
        stat(
            "Ready",
            "min(lct_ready{INSTANCE})",
            mappings=READY,
            thresholds=thresholds(("red", None), ("green", 1)),
        ),
        stat("Requests", "sum(rate(lct_requests_total{MODEL}[RATE]))", "reqps"),
        stat(
            "Errors",
            error_ratio(),
            "percentunit",
            thresholds=thresholds(("green", None), ("orange", 0.001), ("red", 0.01)),
        ),
        stat("p99", quantile(0.99, "lct_request_duration_seconds"), "s"),
        stat(
            "Fullest queue",
            "max(lct_queue_images{MODEL} / lct_queue_capacity_images{MODEL})",
            "percentunit",
            max=1,
            thresholds=thresholds(("green", None), ("orange", 0.5), ("red", 0.8)),
        ),
        stat(
            "Restarts of engines",
            "sum(increase(lct_engine_restarts_total{MODEL}[$__range]))",
            decimals=0,
            thresholds=thresholds(("green", None), ("red", 0.5)),
        ),
    ],
    "Requests": [
        Panel(
            title="Requests by outcome",
            queries={"{{outcome}}": "sum by (outcome) (rate(lct_requests_total{MODEL}[RATE]))"},
            unit="reqps",
            text="Those that chose no model are among them only where all models are shown.",
            defaults={"custom": STACKED},
        ),
        Panel(
            title="Error ratio",
            queries={"{{model}} {{version}}": error_ratio(" by (model, version) ")},
            unit="percentunit",
            text="Of requests that were not the client's fault: those that were rejected, expired, lost with "
            "an engine, not to be served or failed.",
            defaults={"min": 0},
        ),
        Panel(
            title="Responses by route and status",
            queries={
                "{{method}} {{route}} {{status}}": "sum by (method, route, status) "
                "(rate(lct_http_responses_total{INSTANCE}[RATE]))"
            },
            unit="reqps",
            text="Of all models: a response is counted whether or not a model was chosen.",
            defaults={"custom": STACKED},
        ),
    ],
    "Latency": [
        Panel(
            title="Latency by route",
            queries={
                f"p{round(100 * q)} {{{{route}}}}": quantile(q, "lct_request_duration_seconds", ", route")
                for q in (0.5, 0.95, 0.99)
            },
            unit="s",
            text="Of requests that were answered. With OpenTelemetry on, the dots lead to traces.",
            target={"exemplar": True},
        ),
        Panel(
            title="Stages, p99",
            queries={"{{stage}}": quantile(0.99, "lct_stage_duration_seconds", ", stage")},
            unit="s",
            target={"exemplar": True},
        ),
        Panel(
            title="Stages, mean",
            queries={"{{stage}}": mean("lct_stage_duration_seconds", "stage")},
            unit="s",
            text="Stacked: what is missing from a request's mean is reading, parsing and answering.",
            defaults={"custom": STACKED},
        ),
    ],
    "Engines": [
        Panel(
            title="Batches by size",
            queries={"{{le}}": "sum by (le) (increase(lct_batch_size_images_bucket{MODEL}[RATE]))"},
            kind="heatmap",
            options={
                "calculate": False,
                "color": {"mode": "scheme", "scheme": "Oranges", "steps": 64, "exponent": 0.5},
                "yAxis": {"axisPlacement": "left", "unit": "short", "decimals": 0},
                "cellGap": 1,
                "filterValues": {"le": 1e-9},
                "legend": {"show": True},
                "rowsFrame": {"layout": "auto"},
                "exemplars": {"color": "rgba(255,0,255,0.7)"},
                "tooltip": {"mode": "single", "yHistogram": False},
            },
            target={"format": "heatmap"},
        ),
        Panel(
            title="Images in a batch, mean",
            queries={"{{model}} {{version}}": mean("lct_batch_size_images", "model, version")},
            defaults={"min": 0},
        ),
        Panel(
            title="Busy share of the lanes",
            queries={
                "{{model}} {{version}}": "sum by (model, version) "
                "(rate(lct_engine_busy_seconds_total{MODEL}[RATE])) "
                "/ sum by (model, version) (lct_engine_lanes{MODEL})"
            },
            unit="percentunit",
            text="At 100 % the engine computes all the time: more load only makes the queue longer.",
            defaults={"min": 0, "max": 1},
        ),
        Panel(
            title="Queue against capacity",
            queries={
                "{{model}} {{version}}": "sum by (model, version) (lct_queue_images{MODEL})",
                "capacity of {{model}} {{version}}": "sum by (model, version) "
                "(lct_queue_capacity_images{MODEL})",
            },
            text="Images that wait or are being computed.",
            defaults={"min": 0},
        ),
        Panel(
            title="Requests in flight",
            queries={"{{instance}}": "lct_requests_in_flight{INSTANCE}"},
            defaults={"min": 0},
        ),
        Panel(
            title="Images that could not be read",
            queries={
                "{{model}} {{version}}": "sum by (model, version) "
                "(rate(lct_unreadable_images_total{MODEL}[RATE]))"
            },
            unit="cps",
        ),
    ],
    "Health": [
        Panel(
            title="Readiness",
            queries={
                "server {{instance}}": "lct_ready{INSTANCE}",
                "{{model}} {{version}} {{instance}}": "lct_model_ready{MODEL}",
            },
            kind="state-timeline",
            defaults={"mappings": READY},
            options={"showValue": "never", "mergeValues": True, "rowHeight": 0.8},
        ),
        Panel(
            title="Restarts of engines and workers",
            queries={
                "{{model}} {{version}} {{instance}}": "increase(lct_engine_restarts_total{MODEL}[RATE])",
                "workers {{instance}}": "increase(lct_worker_restarts_total{INSTANCE}[RATE])",
            },
            defaults={"min": 0},
        ),
        Panel(
            title="Models that could not be loaded",
            queries={
                "{{model}} {{instance}}": "increase("
                'lct_model_load_failures_total{INSTANCE,model=~"$model"}[RATE])'
            },
            defaults={"min": 0},
        ),
        Panel(
            title="Memory of the HTTP process",
            queries={"{{instance}}": "process_resident_memory_bytes{INSTANCE}"},
            unit="bytes",
            text="Without the engines, which are processes of their own.",
            defaults={"min": 0},
        ),
        Panel(
            title="File descriptors of the HTTP process",
            queries={
                "open {{instance}}": "process_open_fds{INSTANCE}",
                "limit {{instance}}": "process_max_fds{INSTANCE}",
            },
            defaults={"min": 0},
        ),
        Panel(
            title="Processors of the HTTP process",
            queries={"{{instance}}": "rate(process_cpu_seconds_total{INSTANCE}[RATE])"},
            text="Of which it can use little more than one, but for decoding.",
            defaults={"min": 0},
        ),
        Panel(
            title="What runs",
            queries={"": "lct_model_info{MODEL}"},
            kind="table",
            width=16,
            target={"format": "table", "instant": True, "range": False},
            more={
                "transformations": [
                    {
                        "id": "organize",
                        "options": {
                            "excludeByName": {"Time": True, "Value": True, "__name__": True, "job": True}
                        },
                    }
                ]
            },
        ),
        Panel(
            title="Builds",
            queries={"": "count by (version, python) (lct_build_info{INSTANCE})"},
            kind="table",
            target={"format": "table", "instant": True, "range": False},
            more={"transformations": [{"id": "organize", "options": {"excludeByName": {"Time": True}}}]},
        ),
    ],
}


def query(expression: str) -> str:
    """`expression` as Grafana takes it."""
    for word, meaning in (("MODEL", MODEL), ("INSTANCE", INSTANCE), ("RATE", "$__rate_interval")):
        expression = expression.replace(word, meaning)
    return expression


def panels() -> Iterable[dict[str, Any]]:
    """Rows and their panels, set like words on lines."""
    number = y = 0
    for title, row in ROWS.items():
        number += 1
        place = {"x": 0, "y": y, "w": WIDTH, "h": 1}
        yield {
            "id": number,
            "type": "row",
            "title": title,
            "collapsed": False,
            "panels": [],
            "gridPos": place,
        }
        x, y = 0, y + 1
        for panel in row:
            number += 1
            yield panel_of(panel, number, x, y)
            x += panel.width
            if x == WIDTH or panel is row[-1]:
                x, y = 0, y + panel.height


def panel_of(panel: Panel, number: int, x: int, y: int) -> dict[str, Any]:
    targets = [
        {"refId": "ABC"[i], "datasource": SOURCE, "expr": query(expression), "legendFormat": legend,
         **panel.target}
        for i, (legend, expression) in enumerate(panel.queries.items())
    ]  # fmt: skip
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        **({"description": panel.text} if panel.text else {}),
        "datasource": SOURCE,
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": panel.height},
        "targets": targets,
        "fieldConfig": {"defaults": {"unit": panel.unit, **panel.defaults}, "overrides": []},
        "options": panel.options,
        **panel.more,
    }


def variable(name: str, expression: str) -> dict[str, Any]:
    """A choice of several values of a label, or of all, the empty one included."""
    return {
        "type": "query",
        "name": name,
        "datasource": SOURCE,
        "query": {"query": f"label_values({expression}, {name})", "refId": name},
        "refresh": 2,
        "sort": 7,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def dashboard() -> dict[str, Any]:
    return {
        "uid": "lct-deploy",
        "title": "lct-deploy",
        "description": "Servers of image classification networks; docs/observability.md says how to read it.",
        "tags": ["lct-deploy"],
        "schemaVersion": SCHEMA_VERSION,
        "editable": True,
        "graphTooltip": 1,
        "time": {"from": "now-3h", "to": "now"},
        "refresh": "30s",
        "timezone": "browser",
        "templating": {
            "list": [
                {"type": "datasource", "name": "datasource", "label": "data source", "query": "prometheus"},
                variable("instance", "lct_build_info"),
                variable("model", 'lct_model_info{instance=~"$instance"}'),
                variable("version", 'lct_model_info{instance=~"$instance",model=~"$model"}'),
            ]
        },
        "panels": list(panels()),
    }


def dashboard_text() -> str:
    return json.dumps(dashboard(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    DASHBOARD.write_text(dashboard_text(), encoding="utf-8")
