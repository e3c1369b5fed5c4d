"""What the GPU kernels take of each target, and the bytes they move: compiled, not run.

`python -m benchmarks.kernel_resources` writes `results/kernel_resources.csv`; no GPU is needed.
"""

import typer

from benchmarks.rows import RESULTS, write_rows
from lct_deploy.architecture import FAMILIES
from lct_deploy.kernels.gpu.aot import CAPABILITIES, compile_kernel
from lct_deploy.kernels.gpu.plan import plan
from lct_deploy.kernels.gpu.spec import ITEM_BYTES, KernelSpec, Layout

LAYOUTS: tuple[Layout, ...] = ("nhwc", "nchw")
# ResNet-50's stages (those of 101 and 152 too) at 224 and, for two passes, the first of them at 448.
SHAPES = [(channels, (56 >> stage) ** 2) for stage, channels in enumerate(FAMILIES[50].stage_channels)]
SHAPES.append((FAMILIES[50].stage_channels[0], 112**2))


def specs() -> list[KernelSpec]:
    return [
        KernelSpec(channels=channels, pixels=pixels, groups=64, dtype=dtype, layout=layout)
        for channels, pixels in SHAPES
        for layout in LAYOUTS
        for dtype in ITEM_BYTES
    ]


def rows(spec: KernelSpec, capability: int) -> list[dict[str, object]]:
    chosen = plan(spec)
    return [
        {
            "channels": spec.channels,
            "pixels": spec.pixels,
            "layout": spec.layout,
            "dtype": spec.dtype,
            "target": f"sm{capability}",
            "form": chosen.form,
            "kernel": kernel.name,
            "programs_per_sample": kernel.programs_per_sample,
            "threads": kernel.threads,
            "registers": kernel.registers,
            "shared_bytes": kernel.shared_bytes,
            "spill_bytes": kernel.spills,
            "bytes_floor": spec.bytes_floor(1),
            "bytes_moved": chosen.bytes_moved(spec, 1),
        }
        for kernel in compile_kernel(spec, capability)
    ]


def main() -> None:
    measured = [row for spec in specs() for target in CAPABILITIES for row in rows(spec, target)]
    write_rows(RESULTS / "kernel_resources.csv", measured)


if __name__ == "__main__":
    typer.run(main)
