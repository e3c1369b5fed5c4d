"""Networks and the bare kernel on a GPU, from benchmarks.gpu."""

from collections import Counter
from collections.abc import Iterator, Mapping

from benchmarks.report.section import Section, Shown
from benchmarks.report.sources import Results, Rows, Source
from benchmarks.report.tables import ABSENT, digits, table

OK = "ok"
PLAIN = "none"
_STAGES = ("host_to_device_ms", "enqueue_ms", "compute_ms", "device_to_host_ms")


def _show_networks(source: Source, _: Results) -> Shown:
    header = ("", "precision", "batch", "attention", "over plain", "images/s", "host p50 (p10, p90) ms")
    header += ("to device / enqueue / compute / back, ms", "GPU MiB", "max relative error")
    good = [_network_line(row) for row in source.rows if row["status"] == OK and float(row["host_median_ms"])]
    return Shown(text="\n".join([table(header, good), *_reasons(source.rows)]))


def _network_line(row: Mapping[str, str]) -> list[str]:
    over = f"**{float(row['times_plain']):.3f}**" if row["times_plain"] else ABSENT
    times = [digits(float(row[f"host_{name}_ms"])) for name in ("median", "p10", "p90")]
    return [
        row["runtime"],
        row["precision"],
        row["batch"],
        row["attention"],
        over if row["attention"] != PLAIN else "plain",
        digits(float(row["images_per_second"]), 4),
        f"{times[0]} ({times[1]}, {times[2]})",
        " / ".join(digits(float(row[name])) if row[name] else ABSENT for name in _STAGES),
        digits(float(row["gpu_mib"])) if row["gpu_mib"] else ABSENT,
        f"{float(row['max_rel_error']):.1e}",
    ]


def _show_kernel(source: Source, _: Results) -> Shown:
    header = (
        "",
        "type",
        "layout",
        "batch",
        "share of a copy, ours",
        "GB/s, ours",
        "share of a copy, PyTorch's",
        "ours over it",
    )
    return Shown(text="\n".join([table(header, list(_kernel_lines(source))), *_reasons(source.rows)]))


def _kernel_lines(source: Source) -> Iterator[list[str]]:
    for (stage, dtype, layout, batch), rows in source.groups("stage", "dtype", "layout", "batch").items():
        forms = {row["form"]: row for row in rows if row["status"] == OK}
        if ours := forms.get("fused"):
            eager = forms.get("eager")
            faster = float(ours["times_median_ms"]) / float(eager["times_median_ms"]) if eager else None
            yield [
                f"stage {stage}",
                dtype,
                layout,
                batch,
                f"**{float(ours['share_of_copy']):.0%}**",
                digits(float(ours["gigabytes_per_second"])),
                f"{float(eager['share_of_copy']):.0%}" if eager else ABSENT,
                digits(faster),
            ]


def _reasons(rows: Rows) -> list[str]:
    """What was not measured, or is wrong, by its reason."""
    found = Counter(row["status"] for row in rows if row["status"] != OK)
    return [f"{count} of {len(rows)} cases: {why}\n" for why, count in found.items()]


_PACKAGES = (
    "gpu",
    "driver",
    "sm_clock",
    "sm_clock_max",
    "power_limit",
    "torch",
    "tensorrt",
    "onnxruntime-gpu",
)
NETWORKS = Section(
    kind="gpu_networks",
    title="Networks on a GPU",
    command="python -m benchmarks.gpu",
    about="ResNet-50 with and without LCT in every runtime that is installed; *over plain* is its time over "
    "that of the network without attention, timed in turn with it. *native* is the attention in the "
    "runtime's own operators, *fused* and *plugin* are our kernel.",
    show=_show_networks,
    packages=_PACKAGES,
)
KERNEL = Section(
    kind="gpu_kernel",
    title="The attention's kernel on a GPU",
    command="python -m benchmarks.gpu",
    about="The end of a residual block alone, beside a plain copy of as many bytes: 100 % is as fast as "
    "memory goes.",
    show=_show_kernel,
    packages=_PACKAGES,
)
