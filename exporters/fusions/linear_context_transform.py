"""a = w ⊙ (z − μ_g) / sqrt(var_g + ε) + b, equations (2)-(4): read from behaviour, then proven.

A constant context gives b. Contexts of a variance beside which ε is nothing give w, for each group
count that divides C; the right one predicts other contexts. Contexts of small variance give ε. That
takes in whatever is equivalent: an unbiased variance or a temperature in the sigmoid end up in ε, w, b.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from exporters.functions import LINEAR_CONTEXT_TRANSFORM
from exporters.fusions.parameters import Fused, agree, shortest_float32
from exporters.fusions.region import Array, Declined, Part, sample_shape
from lct_deploy.architecture import DEFAULT_EPSILON, MIN_GROUP_SIZE

_HUGE = 1e8  # a standard deviation beside whose square any ε vanishes, even in float64
_SCALES = np.logspace(-9, 3, 97)
_PROOF_SCALES = (1e-3, 1.0, 1e3)


@dataclass(frozen=True, kw_only=True)
class LinearContext:
    """The parameters of equations (2)-(4), in float64 as they were read."""

    groups: int
    epsilon: float
    w: Array
    b: Array

    def terms(self, z: Array) -> Array:
        return self.w * normalize(z, self.groups, self.epsilon)

    def rounded(self) -> "LinearContext":
        """As the node will hold them."""
        w, b = (np.asarray(x, dtype=np.float32).astype(np.float64) for x in (self.w, self.b))
        return LinearContext(groups=self.groups, epsilon=shortest_float32(self.epsilon), w=w, b=b)


def check(transform: Part, channels: int) -> Fused:
    """The LCT that `transform` computes; raises Declined with what it does instead."""
    read = read_linear_context(transform, channels)
    parameters = {"w": read.w.astype(np.float32), "b": read.b.astype(np.float32)}
    return Fused(
        op=LINEAR_CONTEXT_TRANSFORM,
        channels=channels,
        parameters=parameters,
        groups=read.groups,
        epsilon=read.epsilon,
    )


def read_linear_context(transform: Part, channels: int) -> LinearContext:
    """Parameters that give the answers of `transform`; raises Declined where none do."""
    b = transform(np.zeros((1, channels)))[0]
    if len(b) != channels or not np.isfinite(b).all():
        raise Declined("it divides by the variance without an ε: a constant context gives no number")
    fitting = _fitting_groups(transform, b, channels)
    if not fitting:
        raise Declined(_diagnosis(transform, channels))
    constant = not any(w.any() for w in fitting.values())
    groups = _only_groups(transform, fitting) if constant or len(fitting) > 1 else next(iter(fitting))
    w = fitting[groups]
    epsilon = _constant_epsilon(transform) if constant else _epsilon(transform, groups, w, b)
    read = LinearContext(groups=groups, epsilon=epsilon, w=w, b=b).rounded()
    _prove(transform, read)
    return read


def normalize(z: Array, groups: int, epsilon: float) -> Array:
    """Equations (2) and (3) in float64."""
    grouped = z.reshape(len(z), groups, -1)
    centred = grouped - grouped.mean(axis=2, keepdims=True)
    variance = np.square(centred).mean(axis=2, keepdims=True)
    return (centred / np.sqrt(variance + epsilon)).reshape(z.shape)


def _fitting_groups(transform: Part, b: Array, channels: int) -> dict[int, Array]:
    """The w of each group count with which it predicts contexts that it was not read from."""
    counts = [g for g in range(1, channels // MIN_GROUP_SIZE + 1) if channels % g == 0]
    if not counts:
        return {}
    rng = np.random.default_rng(0)
    probes = np.concatenate([_probe(rng, channels, g) for g in counts])
    others = rng.normal(size=(2, channels))
    answers = transform(_HUGE * np.concatenate([probes, others]))
    fitting: dict[int, Array] = {}
    for g, probe, answer in zip(counts, probes, answers, strict=False):
        w = (answer - b) / probe
        terms = w * normalize(others, g, 0.0)
        if np.isfinite(w).all() and agree(answers[-2:], terms + b, np.abs(terms) + np.abs(b)):
            fitting[g] = w
    return fitting


def _probe(rng: np.random.Generator, channels: int, groups: int) -> Array:
    """A normalised context (1, C) none of whose numbers is near zero: half of a group up, half down."""
    size = channels // groups
    signs = np.where(np.arange(size) < (size + 1) // 2, 1.0, -1.0)
    return normalize(np.concatenate([rng.permutation(signs) for _ in range(groups)])[None], groups, 0.0)


def _only_groups(transform: Part, fitting: dict[int, Array]) -> int:
    """Behaviour leaves the group count open where w = 0; then the graph's shapes have to name it."""
    named = _named_groups(transform, _width(transform))
    possible = [groups for groups in fitting if groups in named]
    if len(possible) != 1:
        raise Declined("its gate is the same for every image (w = 0): its groups cannot be told")
    return possible[0]


def _width(transform: Part) -> int:
    return int(np.prod(sample_shape(transform.start) or (1,)))


def _named_groups(transform: Part, channels: int) -> set[int]:
    """Group counts that a shape (…, G, C/G, …) or an attribute of the graph speaks of."""
    named = {n.attributes["num_groups"].as_int() for n in transform.nodes if "num_groups" in n.attributes}
    for node in transform.nodes:
        shape = sample_shape(node.outputs[0]) or ()
        named |= {a for a, b in itertools.pairwise(shape) if a * b == channels and b > 1}
    return named


def _epsilon(transform: Part, groups: int, w: Array, b: Array) -> float:
    """From contexts of variance s²: (a − b) / (w ẑ) is sqrt(s² / (s² + ε)), best read where it is 0.7."""
    strong = np.abs(w) >= np.abs(w).max() / 2
    probe = _probe(np.random.default_rng(1), len(w), groups)
    answers = transform(_SCALES[:, None] * probe)
    share = np.median(((answers - b) / np.where(strong, w * probe, np.inf))[:, strong], axis=1) ** 2
    best = int(np.argmin(np.abs(share - 0.5)))
    if not 0.25 < share[best] < 0.75:
        raise Declined("it divides by the standard deviation without an ε")
    return float(_SCALES[best] ** 2 * (1 / share[best] - 1))


def _constant_epsilon(transform: Part) -> float:
    """ε has no effect where w = 0; what the graph holds is kept all the same."""
    held = [n.attributes["epsilon"].as_float() for n in transform.nodes if "epsilon" in n.attributes]
    held += _small_constants([x for n in transform.nodes for x in n.inputs if x is not None])
    return held[0] if held else DEFAULT_EPSILON


def _small_constants(values: Sequence[ir.Value]) -> list[float]:
    arrays = [x.const_value.numpy() for x in values if x.const_value is not None and x.const_value.size == 1]
    return [float(x.flat[0]) for x in arrays if x.dtype.kind == "f" and 0 < float(x.flat[0]) < 0.1]


def _prove(transform: Part, read: LinearContext) -> None:
    """Contexts of many variances, from far below ε to far above, around means that are not zero."""
    rng = np.random.default_rng(2)
    channels, deviation = len(read.w), np.sqrt(read.epsilon)
    scales = [*(deviation * s for s in (0.01, 0.3, 1.0, 3.0)), *_PROOF_SCALES]
    z = np.concatenate([s * (rng.normal(size=(4, channels)) + 3 * rng.normal(size=(4, 1))) for s in scales])
    terms = read.terms(z)
    if not agree(transform(z), terms + read.b, np.abs(terms) + np.abs(read.b)):
        raise Declined("it normalises, but not as (z − μ) / sqrt(var + ε): small contexts give other gates")


def _diagnosis(transform: Part, channels: int) -> str:
    """Why no group count fits."""
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(2, 1, channels))
    fx, fy, both, zero = transform(np.concatenate([x, y, x + y, np.zeros_like(x)]))
    if np.allclose(fx + fy, both + zero, rtol=1e-9, atol=1e-9):
        return "no normalisation in it: the gate is an affine function of the context"
    stray = _stray(transform, x, channels)
    if stray is not None:
        gate, groups = stray
        return f"the gate of channel {gate} depends on channels outside its group (of {channels // groups})"
    return "it normalises the context, but not as (z − μ) / sqrt(var + ε) within equal groups"


def _stray(transform: Part, z: Array, channels: int) -> tuple[int, int] | None:
    """A gate that moves with the last channel though not of its group, and the group count."""
    named = [g for g in _named_groups(transform, channels) if g > 1]
    if len(named) != 1:
        return None
    moved = z.copy()
    moved[0, -1] += 1.0
    still, after = transform(np.concatenate([z, moved]))
    outside = np.abs(after - still)[: channels - channels // named[0]]
    return (int(np.argmax(outside > 1e-9)), named[0]) if (outside > 1e-9).any() else None
