"""docs/yaml.md tells of every key by the forms that read them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from commands import ROOT, portend
from portend.cli.reference import FORMS, yaml_reference
from portend.errors import ConfigError
from portend.io.forms import TIER, Form, load_topology
from portend.planner.stated import PROBLEM, read_problem
from portend.units import _UNITS
from portend.workflows.experiments import EXPERIMENT, TRAINING, read_experiment, read_training
from portend.workflows.validate import CAMPAIGN, read_campaign

TOPOLOGY = load_topology(ROOT / "configs/topologies/three_tier.yaml")


def _all(form: Form) -> Iterator[Form]:
    yield form
    for key in form.keys:
        if key.form is not None:
            yield from _all(key.form)


EVERY = list({form.title: form for root in FORMS for form in _all(root)}.values())


def test_the_page_is_up_to_date(tmp_path: Path) -> None:
    page = (ROOT / "docs/yaml.md").read_text(encoding="utf-8")
    assert page == yaml_reference(), "write it anew: portend reference --out docs/yaml.md"
    done = portend("reference", "--out", tmp_path / "yaml.md")
    assert done.returncode == 0
    assert (tmp_path / "yaml.md").read_text(encoding="utf-8") == page
    for units in _UNITS.values():
        assert all(f" {unit}" in page for unit in units if unit != "B/s")


@pytest.mark.parametrize("form", EVERY, ids=lambda form: form.title)
def test_every_key_gives_a_field_and_is_told_once(form: Form) -> None:
    names = [key.name for key in form.keys]
    assert len(set(names)) == len(names)
    assert all(key.says and key.words for key in form.keys)
    if dataclasses.is_dataclass(form.makes) and form is not TRAINING:
        fields = {field.name: field for field in dataclasses.fields(form.makes)}
        assert {key.field or key.name for key in form.keys} == set(fields)
        must = {f.name for f in fields.values() if f.default is f.default_factory is dataclasses.MISSING}
        assert must - {"name", "links"} <= {key.field or key.name for key in form.keys if key.required}
    if form is TRAINING:
        own = {"init", "mode", "plan"}
        assert set(names) - own == {field.name for field in dataclasses.fields(form.makes)}


def test_a_default_is_that_of_the_value() -> None:
    shown = {key.name: TIER.default(key) for key in TIER.keys}
    assert (shown["port"], shown["slowdown"], shown["name"], shown["memory"]) == ("7100", "1", "required", "no limit")


def _written(path: Path, values: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


TRAIN = {"epochs": 1, "batch_size": 2, "learning_rate": 0.1}


def test_shares_and_inner_sections_are_read(tmp_path: Path) -> None:
    campaign = {"plans": 3, "samples": "all", "front": "25%", "gap": "5 ms", "hints": {"exits": [], "tiers": "edge"}}
    found = read_campaign(_written(tmp_path / "c.yaml", campaign), TOPOLOGY)
    assert (found.front, found.samples, found.gap_s, found.space.tiers, found.space.exits) == (
        0.25, None, 0.005, (0,), (),
    )  # fmt: skip
    problem = {"minimize": "latency", "subject_to": ["accuracy>=95%"], "codec_tolerance": "0.5%"}
    stated = read_problem(_written(tmp_path / "p.yaml", problem), TOPOLOGY)
    assert (stated.codec_tolerance, stated.subject_to[0].bound) == (0.005, 0.95)
    tuning = TRAIN | {"distillation": {"weight": "40%"}, "early_stopping": {"patience": 2, "share": "20 %"}}
    training = read_training(_written(tmp_path / "r.yaml", {"training": tuning | {"freeze_backbone": True}}))
    assert training.distillation is not None
    assert training.early_stopping is not None
    assert (training.distillation.weight, training.early_stopping.share, training.freeze_backbone) == (0.4, 0.2, True)


@pytest.mark.parametrize(
    ("training", "message"),
    [
        (TRAIN | {"mode": "exits", "freeze_backbone": True}, "training.freeze_backbone: this key is unknown"),
        (TRAIN | {"plan": "x.json"}, "training.plan: this key is unknown"),
        (TRAIN | {"mode": "plan", "plan": "x.json", "exits": [1]}, "training.exits: this key is unknown"),
        (TRAIN | {"distillation": {"weight": "140%"}}, "training.distillation.weight: a share within 0 to 1"),
        (TRAIN | {"early_stopping": {"patience": 0}}, "training.early_stopping: patience is at least 1"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(tmp_path: Path, training: dict[str, Any], message: str) -> None:
    path = _written(tmp_path / "e.yaml", {"network": "resnet8", "data": "digits", "training": training})
    with pytest.raises(ConfigError, match=message):
        read_experiment(path)


def test_every_shipped_file_is_read() -> None:
    for path in (ROOT / "configs").rglob("*.yaml"):
        if path.parent.name == "topologies":
            load_topology(path)
        elif path.parent.name == "campaigns":
            read_campaign(path, TOPOLOGY)
        elif path.parent.name == "refinements":
            read_training(path)
        elif "plan:" not in path.read_text():
            read_experiment(path)
    assert {EXPERIMENT.title, PROBLEM.title, CAMPAIGN.title} < {form.title for form in FORMS}
