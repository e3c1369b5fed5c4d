"""A backbone's golden maps against a runtime on this machine, where PyTorch need not be installed."""

from contextlib import closing

from lct_deploy.bundle import BackboneBundle
from lct_deploy.errors import ParityError
from lct_deploy.manifest import MapParity, Precision
from lct_deploy.map_parity import MapMeasure, map_failures
from lct_deploy.runtime import RuntimeOptions
from lct_deploy.runtime.select import open_backbone


def verify_backbone_golden(
    bundle: BackboneBundle, name: str, options: RuntimeOptions, precision: Precision | None
) -> list[MapParity]:
    """Compare every map with the golden ones; raises ParityError where one is not PyTorch's."""
    measures = {name: MapMeasure(name) for name in bundle.manifest.names}
    with closing(open_backbone(bundle, name, options, precision)) as runtime:
        for golden in bundle.golden():
            _, height, width, _ = golden.image.shape
            maps = runtime.infer(golden.image)
            for feature, measure in measures.items():
                measure.add(golden.maps[feature], maps[feature], (height, width))
    parities = [measure.parity() for measure in measures.values()]
    if failures := [failure for parity in parities for failure in map_failures(parity)]:
        what = f"{bundle.path}: {name} on {options.provider}"
        raise ParityError(f"{what} does not give PyTorch's maps on this machine: " + "; ".join(failures))
    return parities
