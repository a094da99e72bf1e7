"""What each codec costs at each cut, as a table: bytes, time, accuracy, and where it is offered to the planner.

Axes: N+1 cuts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from portend.errors import MismatchError
from portend.perfmodel.model import CODEC_TOLERANCE
from portend.units import format_bytes
from portend.values.profile import Profile

if TYPE_CHECKING:
    from portend.analysis.fitted import FittedTable

__all__ = ["codec_rows", "codecs_markdown", "codecs_table"]

Row = Mapping[str, Any]


def codec_rows(
    profile: Profile, device: str = "", *, tolerance: float = CODEC_TOLERANCE, cuts: Iterable[int] | None = None
) -> list[Row]:
    """Return one row for each cut and codec that can be used there.

    Each has ``cut``, ``block`` (before the cut), ``codec``, ``bytes`` of a message and their ``spread`` over samples
    (None: not known), ``encode_s`` and ``decode_s`` of a device that was idle before, ``loss`` in 0–1 (None: not
    measured), the exit it is that of, how many answers changed there (``lost``, ``gained``), and whether it is
    ``offered`` at the tolerance.

    Args:
        device: name; empty: the first. cuts: to show; None: all.

    Raises:
        MismatchError: the profile has no such device or cut.
    """
    name = device or next(iter(profile.devices))
    if name not in profile.devices:
        raise MismatchError(f"the profile has the devices {sorted(profile.devices)}, but not {name!r}")
    chosen = range(profile.num_blocks) if cuts is None else tuple(cuts)
    outside = [cut for cut in chosen if not 0 <= cut < profile.num_blocks]
    if outside:
        raise MismatchError(f"tensors are sent at the cuts 0–{profile.num_blocks - 1}, but got {outside}")
    rows: list[Row] = []
    codecs = profile.devices[name].codecs
    for cut in chosen:
        for codec, costs in codecs.items():
            if not costs.offered[cut]:
                continue
            loss = float(profile.loss(codec)[cut])
            rows.append(
                {
                    "cut": cut,
                    "block": profile.backbone.block_names[cut - 1] if cut else "input",
                    "codec": codec,
                    "bytes": float(costs.message_bytes[cut]),
                    "spread": float(costs.spread_bytes[cut]) if costs.spread_bytes.size else None,
                    "encode_s": float(costs.encode_s()[cut]),
                    "decode_s": float(costs.decode_s()[cut]),
                    "loss": None if math.isnan(loss) else loss,
                    **_worst(profile, codec, cut),
                    "offered": loss <= tolerance,
                }
            )
    return rows


def _worst(profile: Profile, codec: str, cut: int) -> dict[str, int | None]:
    """The exit that loses most, and its answers lost and gained."""
    known = profile.losses.get(codec.partition("+")[0])
    if known is None or math.isnan(known.loss[cut]):
        return {"exit": None, "lost": None, "gained": None}
    drops = known.drops[cut]
    worst = max((i for i, drop in enumerate(drops) if not math.isnan(drop)), key=lambda i: float(drops[i]))
    return {"exit": worst + 1, "lost": int(known.lost[cut, worst]), "gained": int(known.gained[cut, worst])}


_HEADINGS = ("cut", "after", "codec", "message", "encode, ms", "decode, ms", "loses, points", "offered")


def _cells(row: Row) -> list[str]:
    size = format_bytes(row["bytes"]) + (f" ± {format_bytes(row['spread'])}" if row["spread"] else "")
    changed = f" (exit {row['exit']}: −{row['lost']} +{row['gained']})" if row["lost"] or row["gained"] else ""
    loss = "not measured" if row["loss"] is None else f"{100 * row['loss']:.2f}{changed}"
    times = (f"{1e3 * row['encode_s']:.3f}", f"{1e3 * row['decode_s']:.3f}")
    return [str(row["cut"]), row["block"], row["codec"], size, *times, loss, "yes" if row["offered"] else "no"]


def codecs_table(rows: Sequence[Row], title: str) -> FittedTable:
    """Return the rows for a terminal, a section for each cut."""
    from portend.analysis.fitted import FittedTable

    table = FittedTable(title)
    for heading in _HEADINGS:
        add = table.words if heading in ("after", "codec", "offered") else table.numbers
        add(heading.replace(", ", "\n"))
    for number, row in enumerate(rows):
        last = number + 1 == len(rows) or rows[number + 1]["cut"] != row["cut"]
        cut, after, codec, message, encode, decode, loss, offered = _cells(row)
        loss, _, changed = loss.partition(" (")
        codec += f"\n{changed[:-1]}" if changed else ""
        cells = (cut, after, codec, message.replace(" ±", "\n±"), encode, decode, loss, offered)
        table.add_row(*cells, end_section=last)
    return table


def codecs_markdown(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table."""
    lines = [list(_HEADINGS), ["--:", "---", "---", "--:", "--:", "--:", "--:", "---"], *map(_cells, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
