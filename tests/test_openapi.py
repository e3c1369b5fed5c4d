"""The server against its own OpenAPI document: requests drawn from it, answers checked by it."""

import itertools
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.serving import Server

KEY = "a-key-for-administrators"
EXAMPLES = 3  # of each kind
SERVED = {"model": "demo", "version": "1"}


@pytest.fixture(scope="module")
def url(demo_bundle: Path) -> Generator[str]:
    with Server(demo_bundle, admin_keys=KEY) as server:
        yield server.url


def test_every_operation_answers_as_it_is_documented(url: str) -> None:
    """With models and versions that are drawn, and with those that are served."""
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations() if isinstance(found, Ok)]
    assert len(operations) == sum(len(methods) for methods in schema.raw_schema["paths"].values())
    answered = {(o.method, o.path): Counter[int]() for o in operations}
    # Not drawn: of a few draws none might be let in.
    for operation, served, allowed in itertools.product(operations, (True, False), (True, False)):

        @given(case=operation.as_strategy(), served=st.just(served), allowed=st.just(allowed))
        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        )
        def check(case: schemathesis.Case[Any], served: bool, allowed: bool) -> None:
            if served:
                case.path_parameters.update({k: SERVED[k] for k in case.path_parameters})
            answer = case.call(
                base_url=url, timeout=60, headers={"Authorization": f"Bearer {KEY}"} if allowed else {}
            )
            answered[case.method.lower(), case.path][answer.status_code] += 1
            assert answer.status_code < 500, answer.text
            case.validate_response(
                answer,
                checks=[
                    status_code_conformance,
                    content_type_conformance,
                    response_schema_conformance,
                    response_headers_conformance,
                ],
            )

        check()
    for where, statuses in answered.items():
        assert set(statuses) - {401, 404}, where
