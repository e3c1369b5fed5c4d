"""What the GPU kernels take when compiled, and the bytes they move, from benchmarks.kernel_resources."""

from benchmarks.report.section import Section, Shown
from benchmarks.report.sources import Results, Source, numbers
from benchmarks.report.tables import table


def _show(source: Source, _: Results) -> Shown:
    targets = list(dict.fromkeys(row["target"] for row in source.rows))
    header = (
        "channels × pixels",
        "layout",
        "type",
        "form",
        "bytes over the least",
        "registers",
        "spilled bytes",
    )
    lines = [
        [
            f"{channels} × {pixels}",
            layout,
            dtype,
            form,
            f"**{float(rows[0]['bytes_moved']) / float(rows[0]['bytes_floor']):.2f}**",
            f"{max(numbers(rows, 'registers')):.0f}",
            f"{max(numbers(rows, 'spill_bytes')):.0f}",
        ]
        for (channels, pixels, layout, dtype, form), rows in source.groups(
            "channels", "pixels", "layout", "dtype", "form"
        ).items()
    ]
    said = f"The most of all kernels over the targets {', '.join(targets)}.\n\n"
    return Shown(text=said + table(header, lines))


SECTION = Section(
    kind="kernel_resources",
    title="What the GPU kernels take",
    command="python -m benchmarks.kernel_resources",
    about="Compiled, not run: bytes moved over those that the attention cannot do without (X and the "
    "identity read, Y written once), registers of a thread, and what is spilled.",
    show=_show,
    packages=("triton",),
)
