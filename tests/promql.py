"""Whether a query to Prometheus asks for what there is: metrics, labels, values of labels."""

from collections.abc import Iterable, Mapping

import promql_parser as promql

from tests.scraping import Scraped

Known = Mapping[str, Mapping[str, set[str]]]  # by metric, by label: the values
Labels = frozenset[str]

NOTHING: Labels = frozenset()
FROM_PROMETHEUS = ("job", "instance")  # labels that it gives to all that it scrapes
SET_OPERATORS = ("and", "or", "unless")


class AskedInVainError(Exception):
    """A query names what does not exist, or puts together what does not fit."""


def known_from(scraped: Scraped) -> dict[str, dict[str, set[str]]]:
    """What a scrape holds, and what Prometheus adds to it."""
    known: dict[str, dict[str, set[str]]] = {"up": {label: set() for label in FROM_PROMETHEUS}}
    for name, labels, _ in scraped.samples:
        values = known.setdefault(name, {label: set() for label in FROM_PROMETHEUS})
        for label, value in labels.items():
            values.setdefault(label, set()).add(value)
    return known


def labels_of(query: str, known: Known) -> Labels:
    """The labels of the answer to `query`; raises AskedInVainError, or ValueError where it cannot be read."""
    return _labels(promql.parse(query), known)


def require(wanted: Iterable[str], labels: Labels, where: object) -> None:
    if missing := set(wanted) - labels:
        raise AskedInVainError(f"no label {', '.join(sorted(missing))} in {where}")


def _labels(node: promql.Expr, known: Known) -> Labels:
    match node:
        case promql.NumberLiteral() | promql.StringLiteral():
            return NOTHING
        case promql.VectorSelector():
            return _selected(node, known)
        case promql.MatrixSelector():
            return _selected(node.vector_selector, known)
        case promql.ParenExpr():
            return _labels(node.expr, known)
        case promql.Call():
            labels = NOTHING.union(*(_labels(argument, known) for argument in node.args))
            return labels - {"le"} if node.func.name == "histogram_quantile" else labels
        case promql.AggregateExpr():
            kept = frozenset(node.modifier.labels if node.modifier else ())
            require(kept, _labels(node.expr, known), node.expr)
            return kept
        case promql.BinaryExpr():
            return _combined(node, known)
        case _:
            raise NotImplementedError(f"{type(node).__name__}: say here what labels it has")


def _selected(selector: promql.VectorSelector, known: Known) -> Labels:
    name = selector.name or "{}"  # without a name it asks for everything
    if name not in known:
        raise AskedInVainError(f"no metric {name}")
    labels = known[name]
    for matcher in selector.matchers.matchers:
        require([matcher.name], frozenset(labels), name)
        if "$" not in matcher.value and (unheard := {*matcher.value.split("|")} - labels[matcher.name]):
            raise AskedInVainError(f"{matcher.name} of {name} is never {', '.join(sorted(unheard))}")
    return frozenset(labels)


def _combined(node: promql.BinaryExpr, known: Known) -> Labels:
    left, right = _labels(node.lhs, known), _labels(node.rhs, known)
    matching = node.modifier.matching if node.modifier else None
    if matching is not None:
        for side, labels in ((node.lhs, left), (node.rhs, right)):
            require(matching.labels, labels, side)
    elif left and right and left != right:
        raise AskedInVainError(f"what has different labels never matches: {node}")
    return left & right if str(node.op) == "or" else left or right
