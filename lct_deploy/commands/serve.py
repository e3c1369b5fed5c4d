"""`lct-deploy serve`."""

from pathlib import Path
from typing import Annotated

import typer

from lct_deploy.commands.options import PrecisionOption, ProviderOption, given, parse_precision
from lct_deploy.commands.shared import extra
from lct_deploy.validation import validate


def serve_command(
    bundles: Annotated[list[Path], typer.Argument(help="Bundles, or repositories of them.")],
    host: Annotated[str | None, typer.Option(help="Default 127.0.0.1: this machine only.")] = None,
    port: Annotated[int | None, typer.Option(help="Default 8000; 0 takes a free one.")] = None,
    workers: Annotated[int | None, typer.Option(help="That read and decode; default: what pays.")] = None,
    runtime: Annotated[
        str | None, typer.Option(help="onnxruntime (default), openvino, tensorrt, tensorrt-rtx.")
    ] = None,
    provider: ProviderOption = None,
    precision: PrecisionOption = None,
    streams: Annotated[int | None, typer.Option(help="TensorRT: calls that run side by side.")] = None,
    cuda_graphs: Annotated[bool | None, typer.Option(help="TensorRT: on, unless told otherwise.")] = None,
    instances: Annotated[int | None, typer.Option(help="Copies of a model, side by side.")] = None,
    max_batch: Annotated[int | None, typer.Option(help="Images that run together at most.")] = None,
    max_delay_ms: Annotated[float | None, typer.Option(help="That a batch waits to be filled.")] = None,
    max_queue: Annotated[int | None, typer.Option(help="Images of a model that may wait.")] = None,
    intra_op_threads: Annotated[int | None, typer.Option(help="Threads of one inference.")] = None,
    decode_threads: Annotated[int | None, typer.Option(help="Threads that decode images.")] = None,
    log_level: Annotated[str | None, typer.Option(help="critical, error, warning, info or debug.")] = None,
    log_format: Annotated[str | None, typer.Option(help="json, or text as on a terminal.")] = None,
) -> None:
    """Serve bundles over HTTP; these options and more can be set as LCT_… in the environment."""
    with extra("serve"):
        from server.run import serve
        from server.settings import ServerSettings

    chosen = given(
        host=host,
        port=port,
        workers=workers,
        runtime=runtime,
        provider=provider,
        precision=parse_precision(precision),
        streams=streams,
        cuda_graphs=cuda_graphs,
        instances=instances,
        max_batch=max_batch,
        max_delay_ms=max_delay_ms,
        max_queue=max_queue,
        intra_op_threads=intra_op_threads,
        decode_threads=decode_threads,
        log_level=log_level,
        log_format=log_format,
    )
    serve(validate(ServerSettings, bundles=tuple(bundles), **chosen))
