"""What the verbs take as a network: its file, or what ``train`` returned; and the samples that belong to it."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from portend.data.dataset import Dataset
from portend.data.decoding import InputDecoder, decoder_from_dict
from portend.data.sources import code_in, load_dataset
from portend.errors import ConfigError, MismatchError
from portend.networks.networkfile import read_provenance
from portend.values.backbone import BackboneSpec
from portend.values.profile import Profile

__all__ = ["Network", "Trained", "check_profile", "decoder_of", "network_file", "samples_of"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """What ``train`` leaves behind.

    Attributes:
        network: the file that the other verbs take: the network for ONNX Runtime, or the checkpoint where it cannot be
            exported.
        checkpoint: the weights.
        accuracies: of each exit on the profiling split, 0–1, in the order of the cuts.
    """

    network: Path
    checkpoint: Path
    accuracies: tuple[float, ...]

    def __str__(self) -> str:
        shown = " ".join(f"{100 * accuracy:.1f}" for accuracy in self.accuracies)
        return f"{self.network}: accuracy of each exit on the profiling split, %: {shown}"


Network = str | Path | Trained


def network_file(network: Network) -> Path:
    """Return the network's file."""
    return network.network if isinstance(network, Trained) else Path(network)


def check_profile(profile: Profile | None, spec: BackboneSpec) -> None:
    """Raise MismatchError if a profile is of other weights than the network; where one is not known, nothing is."""
    ours = profile.backbone if profile else None
    if ours and ours.weights_sha256 and spec.weights_sha256 and ours.weights_sha256 != spec.weights_sha256:
        raise MismatchError(
            f"the profile is of {ours.name} with other weights than those that are to run ({spec.name}); give the "
            "profile of this network"
        )


def samples_of(
    network: Network, data: str | None = None, seed: int | None = None, *, allow_code: Collection[str] = ()
) -> tuple[Dataset, int]:
    """Return the data set named, or the one that the network was trained on, with its decoder; and the splits' seed.

    Raises:
        ConfigError: the file names no data set, or one that runs code; or ``seed`` is not the one of its training, so
            that it would be tested on samples that it was trained on.
        DataError: the data set cannot be loaded. StorageError: the file is missing or damaged.
    """
    path = network_file(network)
    provenance = read_provenance(path)
    name = data or provenance.get("dataset")
    if not name:
        raise ConfigError(f"{path} does not say what it was trained on; give the data set (--data)")
    code = None if data else code_in(name)
    if code is not None and code not in allow_code:
        raise ConfigError(
            f"{path} names {code} as its data, which would be imported and run; if you trust it, "
            f"give --data {name}, or --allow-code {code}"
        )
    trained = int(provenance.get("split_seed", seed or 0))
    if seed not in (None, trained):
        raise ConfigError(
            f"{path} was trained on the splits of seed {trained}; with seed {seed} it would be tested on its own "
            "training samples; leave --seed out"
        )
    dataset = load_dataset(name)
    if "decoder" in provenance:
        dataset = replace(dataset, decoder=decoder_from_dict(json.loads(provenance["decoder"])))
    return dataset, trained


def decoder_of(network: Network) -> InputDecoder:
    """Return how the network's samples are decoded; ConfigError if its file does not say it."""
    path = network_file(network)
    provenance = read_provenance(path)
    if "decoder" not in provenance:
        raise ConfigError(f"{path} does not say how its samples are decoded; train or export it with this version")
    return decoder_from_dict(json.loads(provenance["decoder"]))
