"""How often a network is right, over all processes of a run."""

import torch

from lct_deploy.models.classifier import ImageClassifier
from lct_deploy.progress import track
from lct_deploy.train.batches import Batches
from lct_deploy.train.ranks import Ranks

_BEST = 5


def accuracy(model: ImageClassifier, batches: Batches, ranks: Ranks) -> tuple[float, float]:
    """Top-1 and top-5 accuracy in percent, in evaluation mode; every image counts once."""
    model.eval()
    device = ranks.device
    right, total = torch.zeros(2, dtype=torch.int64, device=device), 0
    with torch.inference_mode():
        for images, labels in track(batches.epoch(0), "test", total=len(batches)):
            logits = model(images.to(device, non_blocking=True))
            best = logits.topk(min(_BEST, logits.shape[1])).indices
            hits = best == labels.to(device, non_blocking=True)[:, None]
            right += torch.stack([hits[:, 0].sum(), hits.sum()])
            total += len(labels)
    top1, top5, count = ranks.sums(*right.tolist(), total)
    return 100 * top1 / count, 100 * top5 / count
