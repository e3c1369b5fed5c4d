"""What whoever runs the server can see of it: metrics, logs, traces.

    record.py        what is known of one request, filled in while it runs
    trace_context.py request ids and W3C trace context, as clients send them
    middleware.py    around every request: begins its record, and at its end counts, logs and traces it
    metrics.py       what is counted while requests run
    scrape.py        GET /metrics: that, and what models and engines say when they are asked
    logs.py          one JSON object a line, or text
    tracing.py       OpenTelemetry spans; needs the extra `otel`

A route needs to do nothing: models and engines note what they do in the record of the request that is
running. What only the route knows it notes itself, with `request_record(request).stage(…)`.
"""
