"""The commands that make parts of a bundle again: what a refusal names."""

import shlex
from pathlib import Path

from lct_deploy.manifest import AnyManifest, Artifact, BackboneManifest, EngineBuild, Profile

# As in an engine's options; the timing cache is not among them: its path is not recorded.
_FLAGS = "opt level", "version compatible", "hardware compatible"


def export_command(bundle: Path, manifest: AnyManifest | None = None) -> str:
    """What makes a whole bundle again; `manifest` where it can be read."""
    command = f"rebuild it: lct-deploy export CHECKPOINT -o {shlex.quote(str(bundle))} --overwrite"
    if isinstance(manifest, BackboneManifest):
        command += f" --features {','.join(manifest.names)}"
    return command


def compile_command(bundle: Path, compiled: Artifact, *, gpu: str | None = None) -> str:
    """What compiles this artifact again; `gpu` is the one to build for where RTX can be told one."""
    command = ["lct-deploy", "compile", str(bundle), "--runtime", compiled.runtime]
    command += ["--precision", compiled.precision]
    if compiled.runtime == "onnxruntime":
        return shlex.join([*command, "--batch", ",".join(str(p.opt) for p in compiled.profiles)])
    command += ["--batch", ",".join(map(_batch, compiled.profiles))]
    if compiled.build is not None:
        command += _build_flags(compiled.build)
    if compiled.runtime == "tensorrt-rtx":
        command += ["--gpu", gpu or compiled.gpu or ""]
    return shlex.join(command)


def _batch(profile: Profile) -> str:
    return f"{profile.min}:{profile.opt}:{profile.max}"


def _build_flags(build: EngineBuild) -> list[str]:
    flags = ["--attention", "plugin"] if build.attention == "plugin" else []
    for name in _FLAGS:
        if value := build.options.get(name):
            flags += [f"--{name.replace(' ', '-')}", *([] if value == "yes" else [value])]
    return flags
