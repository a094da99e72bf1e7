"""One profile of several machines, from the file that each of them wrote. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from portend.errors import MismatchError
from portend.values.backbone import BackboneSpec
from portend.values.device_profile import DeviceProfile
from portend.values.profile import Profile

__all__ = ["merge"]

_IDENTITY: Final[Mapping[str, str]] = {
    "name": "network",
    "block_names": "blocks",
    "num_classes": "classes",
    "cut_shapes": "shapes of the tensors at the cuts",
    "exits": "cuts with an exit branch",
    "weights_sha256": "weights (SHA-256)",
}
_SAMPLES: Final = ("data", "seed", "split")


def merge(files: Mapping[str, Profile | DeviceProfile], rename: Mapping[tuple[str, str], str] | None = None) -> Profile:
    """Return one profile with the devices of all files, whole profiles or single devices, and the first's exits.

    Args:
        files: by the names that errors shall use, in order.
        rename: new names of devices, by file and present name.

    Raises:
        MismatchError: no file has exits, they are of different networks or samples, two devices have one name, or
            there is no device to rename.
    """
    wholes = {file: found for file, found in files.items() if isinstance(found, Profile)}
    if not wholes:
        raise MismatchError(
            f"a profile needs exits, but {', '.join(files) or 'no file'} has devices only; add one that was profiled "
            "without --device-only"
        )
    first, base = next(iter(wholes.items()))
    names = dict(rename or {})
    devices: dict[str, DeviceProfile] = {}
    owner: dict[str, str] = {}
    for file, found in files.items():
        _check_network(base.backbone, first, _network(found, file), file)
        if isinstance(found, Profile):
            _check_exits(base, first, found, file)
        own = found.devices if isinstance(found, Profile) else {found.device: found}
        for old, device in own.items():
            name = names.pop((file, old), old)
            if name in devices:
                raise MismatchError(
                    f"devices have different names, but {owner[name]} and {file} both have {name!r}; "
                    f"give one another, such as --rename {file}:{old}=NAME"
                )
            devices[name] = device if device.device == name else replace(device, device=name)
            owner[name] = file
    if names:
        known = ", ".join(f"{file}:{name}" for name, file in owner.items())
        missing = ", ".join(f"{file}:{old}" for file, old in names)
        raise MismatchError(f"there is no device {missing} to rename; there are {known}")
    provenance = dict(base.provenance) | {"merged": ", ".join(files)}
    return replace(base, devices=devices, provenance=provenance)


def _network(found: Profile | DeviceProfile, file: str) -> BackboneSpec:
    network = found.backbone if isinstance(found, Profile) else found.network
    if network is None:
        raise MismatchError(f"{file} does not say which network was profiled; profile that machine again")
    return network


def _check_network(base: BackboneSpec, first: str, other: BackboneSpec, file: str) -> None:
    different = [
        f"{words}: {_shown(getattr(base, name), getattr(other, name))}"
        for name, words in _IDENTITY.items()
        if getattr(base, name) != getattr(other, name)
    ]
    if different:
        raise MismatchError(
            f"profiles that are merged are of one network, but {first} and {file} differ in {'; '.join(different)}"
        )


def _check_exits(base: Profile, first: str, other: Profile, file: str) -> None:
    facts = {key: (base.provenance.get(key), other.provenance.get(key)) for key in _SAMPLES}
    facts["criterion"] = (base.exits.criterion, other.exits.criterion)
    facts["samples"] = (str(base.exits.samples), str(other.exits.samples))
    different = [f"{key}: {_shown(*values)}" for key, values in facts.items() if values[0] != values[1]]
    if different:
        raise MismatchError(
            f"profiles that are merged have exits on the same samples, but {first} and {file} differ in "
            f"{'; '.join(different)}; profile the second machine with --device-only"
        )


def _shown(a: Any, b: Any) -> str:
    """Two values, of tuples only where they first differ."""
    if isinstance(a, tuple) and isinstance(b, tuple):
        if len(a) != len(b):
            return f"{len(a)} against {len(b)}"
        index = next(i for i, pair in enumerate(zip(a, b, strict=True)) if pair[0] != pair[1])
        return f"{a[index]} against {b[index]} at {index}"
    short = [str(value)[:12] + "…" if len(str(value)) > 40 else str(value) for value in (a, b)]
    return f"{short[0]} against {short[1]}"
