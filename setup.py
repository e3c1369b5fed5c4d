"""The part of the build that pyproject.toml cannot state: the CPU operators, in C++."""

from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

CPU = Path("lct_deploy/kernels/cpu")


class BuildOperators(build_ext):
    """Says in plain words what it means that an operator library was not built."""

    def build_extension(self, ext: Extension) -> None:
        try:
            super().build_extension(ext)
        except Exception as error:  # whatever a missing or failing compiler raises
            self.warn(f"{ext.name} was not built, the standard operators serve instead: {error}")


setup(
    ext_modules=[
        Extension(
            "lct_deploy.kernels.cpu.attention",
            sources=[str(CPU / "attention.cpp")],
            depends=[str(CPU / "kernels.h"), str(CPU / "onnxruntime_api.h")],
            language="c++",
            # A multiply and an add may be one instruction; nothing else of IEEE arithmetic is given up.
            extra_compile_args=[
                "-std=c++17",
                "-O3",
                "-g0",
                "-fvisibility=hidden",
                "-ffp-contract=fast",
                "-fno-math-errno",
                "-fno-trapping-math",
            ],
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildOperators},
)
