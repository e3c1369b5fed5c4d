"""A checkpoint in PyTorch, eager or compiled, in the layout that its CPU convolutions are fastest in."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.measure.messages import Subject
from benchmarks.measure.openers import Runner
from lct_deploy.bundle import Bundle
from lct_deploy.checkpoint import load_checkpoint
from lct_deploy.errors import UsageError
from lct_deploy.models.classifier import ImageClassifier


def open_runner(subject: Subject, bundle: Bundle) -> Runner:
    if subject.graph is None:
        raise UsageError(f"{subject.kind} needs a checkpoint")
    torch.set_num_threads(subject.threads)
    preprocessing = bundle.manifest.input.preprocessing
    classifier = ImageClassifier(load_checkpoint(subject.graph).model, preprocessing).eval()
    classifier.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    run: Callable[[torch.Tensor], torch.Tensor] = classifier
    if subject.kind == "torch compile":
        run = torch.compile(classifier, dynamic=False)
    bf16 = subject.precision == "bf16"

    def infer(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return run(torch.from_numpy(images)).float().numpy()

    return Runner(
        infer=infer,
        runtime=f"{subject.kind} {torch.__version__}",
        precision=subject.precision or "fp32",
    )
