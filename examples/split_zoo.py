"""Split every classification model of torchvision, families of timm and a text encoder, and say what became of them.

    python examples/split_zoo.py --json out/split.json --markdown out/split.md
    python examples/split_zoo.py resnet18 timm:mixer_s32_224 text:bert

The weights are random; nothing is downloaded. A model of the JSON file is not split again, so an interrupted run goes
on where it was. ``equal`` compares chain and network in evaluation and, under one seed, in training; ``split`` itself
refuses a chain whose output differs.
"""

from __future__ import annotations

import argparse
import gc
import json
import warnings
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

import portend as pt
from portend.errors import SplitError
from portend.io.storage import write_json, write_text
from portend.networks.tracing import only_tensor

TIMM = (
    "resnet18", "resnet50d", "resnetv2_50", "resnext50_32x4d", "seresnet50", "skresnet18", "resnest14d",
    "res2net50_26w_4s",
    "regnetx_002", "regnety_002", "efficientnet_b0", "efficientnet_b1", "efficientnet_b2", "efficientnet_b3",
    "efficientnet_b4", "efficientnet_b5", "efficientnet_b6", "efficientnet_b7", "efficientnetv2_rw_t",
    "mobilenetv1_100",
    "mobilenetv2_050", "mobilenetv3_small_050", "mobilenetv4_conv_small", "mnasnet_small", "ghostnet_050",
    "convnext_atto", "convnextv2_atto", "densenet121", "vgg11", "inception_v4", "inception_resnet_v2", "xception41",
    "dla34", "dpn48b", "ese_vovnet19b_dw", "hardcorenas_a", "hrnet_w18_small", "nasnetalarge", "nfnet_l0", "repvgg_a0",
    "rexnet_100", "cspresnet50", "darknet53", "selecsls42b", "tresnet_m", "lcnet_050", "vit_tiny_patch16_224",
    "deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "deit3_small_patch16_224", "beit_base_patch16_224",
    "eva02_tiny_patch14_224", "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "mixer_s32_224",
    "gmixer_24_224",
    "resmlp_12_224", "gmlp_s16_224", "convmixer_768_32", "poolformer_s12", "caformer_s18", "mobilevit_xxs",
    "efficientformer_l1", "levit_128s", "cait_xxs24_224", "xcit_nano_12_p8_224", "pit_ti_224", "twins_pcpvt_small",
    "crossvit_tiny_240", "visformer_tiny", "coatnet_pico_rw_224", "maxvit_pico_rw_256", "mvitv2_tiny", "pvt_v2_b0",
    "davit_tiny", "focalnet_tiny_srf", "hiera_tiny_224", "volo_d1_224", "edgenext_xx_small", "fastvit_t8",
    "inception_next_tiny", "repvit_m0_9", "tiny_vit_5m_224", "efficientvit_b0", "efficientvit_m0", "fasternet_t0",
    "mambaout_femto", "sequencer2d_s",
)  # fmt: skip
TEXT = ("bert", "distilbert", "roberta", "albert", "electra")
MOST_BYTES = 8 << 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="such as resnet18, timm:mixer_s32_224, text:bert; none: all")
    parser.add_argument("--json", type=Path, help="one row per model; rows that are there are kept")
    parser.add_argument("--markdown", type=Path, help="the same as a table")
    options = parser.parse_args()
    rows: dict[str, dict[str, Any]] = {}
    if options.json and options.json.exists():
        rows = {row["model"]: row for row in json.loads(options.json.read_text(encoding="utf-8"))}
    names = options.models or every_name()
    for number, name in enumerate(names, start=1):
        if name not in rows:
            rows[name] = row_of(name)
            gc.collect()
            if options.json:
                write_json(list(rows.values()), options.json)
        row = rows[name]
        print(f"{number}/{len(names)} {name}: {row['blocks'] or '–'} blocks, {row['remark']}", flush=True)
    chosen = [rows[name] for name in names]
    for source in ("torchvision", "timm", "transformers"):
        own = [row for row in chosen if row["source"] == source and row["blocks"] is not None]
        if own:
            print(f"{source}: {sum(row['blocks'] >= 4 for row in own)} of {len(own)} in four or more blocks")
    if options.markdown:
        write_text(table(chosen), options.markdown)


def every_name() -> list[str]:
    from torchvision import models

    return [*models.list_models(module=models), *(f"timm:{name}" for name in TIMM), *(f"text:{name}" for name in TEXT)]


def make(name: str) -> tuple[str, nn.Module, Tensor]:
    """Return the source, a new network and an example of one sample in its natural size."""
    kind, _, rest = name.rpartition(":")
    if kind == "timm":
        import timm

        module = timm.create_model(rest)
        size = timm.get_pretrained_cfg(rest).input_size  # type: ignore[union-attr]
        return "timm", module, torch.randn(1, *size)
    if kind == "text":
        import transformers

        sizes = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
        if rest == "distilbert":
            sizes = {"vocab_size": 99, "dim": 32, "n_layers": 4, "n_heads": 4, "hidden_dim": 64}
        config = transformers.AutoConfig.for_model(rest, **sizes)
        module = transformers.AutoModelForSequenceClassification.from_config(config)  # type: ignore[no-untyped-call]
        return "transformers", module, torch.randint(3, 99, (1, 12))
    from torchvision import models

    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    size = 299 if name == "inception_v3" else 224
    return "torchvision", models.get_model(name, weights=None, **options), torch.randn(1, 3, size, size)


def row_of(name: str) -> dict[str, Any]:
    """Split one model; the row says how many blocks, whether the outputs are equal, and what is not cut."""
    torch.manual_seed(0)
    began = perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source, module, example = make(name)
        row: dict[str, Any] = {"model": name, "source": source, "input": list(example.shape[1:]), "blocks": None}
        row |= {"parameters": sum(p.numel() for p in module.parameters()), "equal": None, "equal_in_training": None}
        if 4 * row["parameters"] * 3 > MOST_BYTES:
            return row | {"remark": f"skipped: its weights and activations may not fit in {MOST_BYTES >> 30} GiB"}
        try:
            chain = pt.split(module.eval(), example)
        except SplitError as error:
            return row | {"blocks": 0, "remark": str(error)}
        row["blocks"] = len(chain)
        row["equal"] = agree(module.eval(), chain.sequential().eval(), example)
        row["equal_in_training"] = agree(
            module.train(), chain.sequential().train(), torch.cat([example, example.roll(1, -1)])
        )
    row["first"], row["last"] = chain.names[0], chain.names[-1]
    row["own_head"] = not isinstance(chain.head, nn.Identity)
    row["refusals"] = [str(refusal) for refusal in chain.refusals]
    row["notes"] = list(chain.notes)
    row["seconds"] = round(perf_counter() - began, 2)
    return row | {"remark": remark(chain)}


@torch.no_grad()
def agree(module: nn.Module, again: nn.Module, x: Tensor) -> bool | None:
    """Whether two networks on the same weights agree bit for bit from one seed; None: one cannot run."""
    outputs = []
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    for network in (module, again):
        torch.manual_seed(0)
        try:
            outputs.append(only_tensor(network(x.clone())))
        except (SplitError, ValueError):
            outputs.append(None)
        for name, buffer in module.named_buffers():
            buffer.copy_(before[name])
    return None if outputs[0] is None or outputs[1] is None else torch.equal(*outputs)


def remark(chain: pt.Chain) -> str:
    """What a reader should know first: the notes, or the largest part that is not cut."""
    if chain.notes:
        return "; ".join(chain.notes)
    whole = sum(chain.costs) + chain.head_cost
    shares = dict(zip(chain.names, chain.costs, strict=True))
    dear = max(chain.refusals, key=lambda refusal: shares[refusal.module], default=None)
    if dear is None:
        return ""
    return f"largest part: {dear.module} ({100 * shares[dear.module] / whole:.0f} % of the cost), where {dear.why}"


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    said = {True: "yes", False: "NO", None: "–"}
    lines = [
        "| Model | Parameters | Blocks | Equal (evaluation / training) | Where it is not cut, notes |",
        "|---|--:|--:|---|---|",
    ]
    for row in rows:
        blocks = "–" if row["blocks"] is None else row["blocks"]
        equal = f"{said[row['equal']]} / {said[row['equal_in_training']]}"
        text = row["remark"].replace("|", "\\|")
        text = text if len(text) <= 160 else text[:157] + "..."
        lines.append(f"| {row['model']} | {row['parameters'] / 1e6:.1f} M | {blocks} | {equal} | {text} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
