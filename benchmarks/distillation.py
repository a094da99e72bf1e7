"""What self-distillation from the last exit does to the earlier ones: accuracy on the test split, over seeds.

    python benchmarks/distillation.py --data digits:size=8 --network resnet14 --epochs 15 --seeds 3

Each row trains from new weights, with splits, weights and order of the same seeds; only the loss differs.
"""

from __future__ import annotations

import argparse
import tempfile

import numpy as np

from portend.data.dataset import make_splits
from portend.data.sources import load_dataset
from portend.networks import zoo
from portend.networks.evaluators import TorchEvaluator
from portend.networks.scoring import score_samples
from portend.training.config import Distillation, TrainingConfig
from portend.training.training import train

__all__ = ["main"]

CASES = (None, Distillation(weight=0.5, temperature=3.0), Distillation(weight=0.9, temperature=3.0))


def main(arguments: list[str] | None = None) -> None:
    """Print one row per case: mean accuracy of each exit in %, and its standard deviation over the seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits:size=8")
    parser.add_argument("--network", default="resnet14")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=0.05)
    parser.add_argument("--seeds", type=int, default=3)
    chosen = parser.parse_args(arguments)
    dataset = load_dataset(chosen.data)
    channels, size, _ = dataset.decoder.shape
    for case in CASES:
        found = []
        for seed in range(chosen.seeds):
            config = TrainingConfig(
                epochs=chosen.epochs,
                batch_size=chosen.batch_size,
                learning_rate=chosen.learning_rate,
                seed=seed,
                distillation=case,
            )
            backbone = zoo.build(
                chosen.network, in_channels=channels, input_size=size, num_classes=dataset.num_classes, seed=seed
            )
            splits = make_splits(dataset, seed=seed)
            with tempfile.TemporaryDirectory() as folder:
                train(backbone, dataset, splits, config, folder)
            found.append(score_samples(TorchEvaluator(backbone), dataset, splits.test)[1].mean(axis=0))
        name = "none" if case is None else f"weight {case.weight:g}, temperature {case.temperature:g}"
        mean, spread = 100 * np.mean(found, axis=0), 100 * np.std(found, axis=0)
        print(f"{name:<28}", " ".join(f"{m:5.1f}±{s:.1f}" for m, s in zip(mean, spread, strict=True)), flush=True)


if __name__ == "__main__":
    main()
