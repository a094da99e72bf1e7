"""Every option that is one of a few words is refused where it is given if it is another, and the near word is named."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

import portend as pt
from commands import ROOT
from portend.analysis.validation import Validation
from portend.analysis.whatif import Scenario
from portend.errors import ConfigError, DataError, InvalidValue, PortendError, first_difference
from portend.perfmodel.estimate import OutcomeDraws
from portend.planner.metrics import Constraint, parse_constraint
from portend.planner.problem import SearchSpace
from portend.planner.space import PlanSpace
from portend.testbed.emulation.choose import make_emulation
from portend.testbed.emulation.namespaces import Namespaces
from portend.units import parse
from portend.values.execution import Execution
from portend.values.plan import codec_parts
from portend.values.topology import Tier, Topology
from portend.workflows.validate import Campaign
from problems import random_case

SOURCES = Path(pt.__file__).parent
ONE_TIER = Topology(name="t", tiers=(Tier(name="edge", device="d"),), links=())


def model(**options: Any) -> pt.PerformanceModel:
    case = random_case(3, blocks=3, tiers=2, estimator="sample")
    return pt.PerformanceModel(case.profile, case.topology, **options)


def draws() -> OutcomeDraws:
    return OutcomeDraws(exit_rates=np.ones((1, 1)), accuracy=np.ones(1), latency_s=np.ones(1))


def torch_case(name: str, word: str) -> Callable[[], Any]:
    """A call into what needs torch, which is imported only when the test runs."""

    def call() -> Any:
        import torch
        from torch import nn

        from portend.data.augment import augmented
        from portend.data.decoding import AudioDecoder, ImageDecoder, TensorDecoder
        from portend.networks.scores import score
        from portend.networks.zoo import build
        from portend.training.config import TrainingConfig
        from portend.training.schedules import peak_share

        rng = np.random.default_rng(0)
        calls: dict[str, Callable[[], Any]] = {
            "augment": lambda: augmented(torch.zeros(1, 1, 8, 8), word, rng),  # type: ignore[arg-type]
            "schedule": lambda: peak_share(word, 1, 10),  # type: ignore[arg-type]
            "cost": lambda: pt.split(nn.Linear(2, 2), torch.zeros(2, 2), cost=cast(Any, word)),
            "interpolation": lambda: ImageDecoder(
                channels=1, size=8, mean=(0,), std=(1,), interpolation=cast(Any, word)
            ),
            "patch": lambda: AudioDecoder(patch=cast(Any, word)),
            "dtype": lambda: TensorDecoder(shape=(1,), dtype=cast(Any, word)),
            "score": lambda: score(torch.zeros(2, 3), word),
            "build": lambda: build(word),
            "shortcut": lambda: build("resnet8", shortcut=word),
        }
        if name in calls:
            return calls[name]()
        option: dict[str, Any] = {name.partition(".")[2]: word}
        return TrainingConfig(epochs=1, batch_size=1, learning_rate=0.1, **option)

    return call


def dataset(spec: str) -> Callable[[], Any]:
    def call() -> Any:
        from portend.data.sources import load_dataset

        return load_dataset(spec)

    return call


CASES: dict[str, tuple[Callable[[], Any], type[PortendError], str]] = {
    # options that are typed as one of a few words
    "perfmodel/model.py:PerformanceModel.__init__.estimator": (
        lambda: model(estimator="Sample"), InvalidValue, "sample"),
    "perfmodel/estimate.py:OutcomeDraws.interval.quantity": (
        lambda: draws().interval(cast(Any, "acuracy")), InvalidValue, "accuracy"),
    "analysis/whatif.py:Scenario.estimator": (
        lambda: Scenario(
            profile=model().profile,
            topology=ONE_TIER,
            problem=pt.Problem(minimize=pt.latency),
            estimator=cast(Any, "margin"),
        ),
        InvalidValue, "marginal"),
    "planner/problem.py:SearchSpace.tier_order": (
        lambda: SearchSpace(tier_order=cast(Any, "Increasing")), InvalidValue, "increasing"),
    "planner/metrics.py:Constraint.sense": (
        lambda: Constraint(pt.latency, cast(Any, "<=="), 1.0), InvalidValue, "<="),
    "values/topology.py:Topology.ingest": (
        lambda: Topology(name="t", tiers=(Tier(name="a", device="d"),), links=(), ingest=cast(Any, "in-process")),
        InvalidValue, "in_process"),
    "values/execution.py:Execution.executor": (
        lambda: Execution(executor=cast(Any, "onnx-runtime")), InvalidValue, "onnxruntime"),
    "values/execution.py:Execution.precision": (
        lambda: Execution(precision=cast(Any, "bfloat")), InvalidValue, "bfloat16"),
    "testbed/emulation/namespaces.py:Namespaces.__init__.driver": (
        lambda: Namespaces(ONE_TIER, driver=cast(Any, "forward")), InvalidValue, "forwarder"),
    "units.py:parse.dimension": (lambda: parse("1 s", cast(Any, "times")), InvalidValue, "time"),
    "networks/split.py:split.cost": (torch_case("cost", "flop"), InvalidValue, "flops"),
    "data/augment.py:augmented.augment": (torch_case("augment", "crop+flips"), InvalidValue, "crop+flip"),
    "training/schedules.py:peak_share.schedule": (torch_case("schedule", "cosinus"), InvalidValue, "cosine"),
    "data/decoding.py:ImageDecoder.interpolation": (
        torch_case("interpolation", "bicubical"), InvalidValue, "bicubic"),
    "data/decoding.py:AudioDecoder.patch": (torch_case("patch", "centre"), InvalidValue, "center"),
    "data/decoding.py:TensorDecoder.dtype": (torch_case("dtype", "int"), InvalidValue, "int64"),
    "training/config.py:TrainingConfig.augment": (torch_case("config.augment", "crops"), InvalidValue, "crop"),
    "training/config.py:TrainingConfig.precision": (
        torch_case("config.precision", "float_32"), InvalidValue, "float"),
    "training/config.py:TrainingConfig.optimizer": (torch_case("config.optimizer", "adam"), InvalidValue, "adamw"),
    "training/config.py:TrainingConfig.schedule": (torch_case("config.schedule", "cosin"), InvalidValue, "cosine"),
    # names that are plain text
    "criterion of a plan": (
        lambda: pt.Plan(cuts=(1, 2), placement=(0, 0), thresholds=(0.5,), criterion="Entropy"),
        InvalidValue, "entropy"),
    "criterion of exits": (
        lambda: pt.SampleExits(scores={"entropi": np.zeros((1, 1))}, correct=np.ones((1, 1), dtype=bool)),
        InvalidValue, "entropy"),
    "criterion of a score": (torch_case("score", "margins"), InvalidValue, "margin"),
    "criterion of a campaign": (lambda: Campaign(criterion="margins"), InvalidValue, "margin"),
    "emulation of a campaign": (lambda: Campaign(emulation="relais"), InvalidValue, "relay"),
    "emulation": (lambda: make_emulation("namespace", ONE_TIER), InvalidValue, "namespaces"),
    "codecs of a space": (
        lambda: PlanSpace(SearchSpace(codecs=("float32", "flaot32")), model()), InvalidValue, "float32"),
    "codec": (lambda: codec_parts("float16+lz"), InvalidValue, "float16+lz4"),
    "loss of a codec": (lambda: model().profile.loss("int8-chanel"), InvalidValue, "int8-channel"),
    "what explains errors": (
        lambda: Validation.exit_attribution(cast(Any, SimpleNamespace(_replayed=False)), "acuracy"),
        InvalidValue, "accuracy"),
    "metric": (lambda: pt.load_metric("latncy"), ConfigError, "latency"),
    "metric of a bound": (lambda: parse_constraint("enrgy<=1 J"), ConfigError, "energy"),
    "network": (torch_case("build", "resnet_20"), InvalidValue, "resnet20"),
    "option of a network": (torch_case("shortcut", "Conv"), InvalidValue, "conv"),
    "kind of a data set": (dataset("digit"), DataError, "digits"),
    "option of a data set": (dataset("digits:siz=8"), DataError, "size"),
    "own test of a data set": (dataset("digits:own_test=nope"), DataError, "no"),
}  # fmt: skip

OURS = {
    "planner/problem.py:Solution.status": "the planner's answer",
    "planner/mix.py:Pick.origin": "the planner's answer",
    "planner/answers.py:solution.status": "from one solver to the other",
    "planner/answers.py:by_front.ended": "from one solver to the other",
    "planner/problem.py:SearchStats.ended": "the planner's answer",
    "testbed/emulation/relay.py:Delivery.mark": "of the relay's own thread",
    "testbed/emulation/relay.py:Network.mark.mark": "of the relay's own thread",
    "runtime/protocol.py:Header.kind": "checked where a message is read",
    "analysis/whatif.py:Field.kind": "made from the tables of what-if alone",
    "analysis/whatif.py:Field.element": "made from the tables of what-if alone",
    "io/forms.py:Section.quantity.dimension": "handed on to units.parse",
    "io/forms.py:amount.dimension": "made from the forms alone",
    "io/forms.py:amounts.dimension": "made from the forms alone",
    "cli/options.py:Quantity.__init__.dimension": "made from the commands alone",
    "planner/planfile.py:Search.estimator": "checked by PerformanceModel, which it is for",
    "networks/dataflow.py:Flow.__init__.cost": "handed on by split",
}
"""Typed as one of a few words, but not given by users."""


@pytest.mark.parametrize("name", CASES)
def test_a_mistyped_word_is_refused_and_the_near_one_is_named(name: str) -> None:
    call, error, meant = CASES[name]
    with pytest.raises(error, match="did you mean") as raised:
        call()
    assert f"'{meant}" in str(raised.value).partition("did you mean")[2]


def test_every_typed_word_is_tried() -> None:
    tried = {name for name in CASES if ".py:" in name} | set(OURS)
    found = set(typed_words())
    assert sorted(found - tried) == [], "try it in CASES, or say in OURS why no user gives it"
    assert sorted(tried - found) == []


def typed_words() -> list[str]:
    """Parameters and fields that are typed as one of a few words, as ``file:Class.function.parameter``."""
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(SOURCES.rglob("*.py"))}
    aliases = {(module_of(path), name) for path, tree in trees.items() for name in defined(tree)}
    found = []
    for path, tree in trees.items():
        place = path.relative_to(SOURCES).as_posix()
        words = set(defined(tree)) | {
            name.name
            for node in tree.body
            if isinstance(node, ast.ImportFrom)
            for name in node.names
            if (node.module, name.name) in aliases
        }
        for node in tree.body:
            inner = [(node, "")]
            if isinstance(node, ast.ClassDef):
                inner = [(each, f"{node.name}.") for each in node.body]
            for each, prefix in inner:
                if prefix.startswith("_") or (isinstance(each, ast.FunctionDef) and private(each.name)):
                    continue
                named: list[tuple[str, ast.expr | None]] = []
                if prefix and isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name):
                    named = [(each.target.id, each.annotation)]
                elif isinstance(each, ast.FunctionDef):
                    arguments = [*each.args.args, *each.args.kwonlyargs]
                    named = [(f"{each.name}.{argument.arg}", argument.annotation) for argument in arguments]
                found += [f"{place}:{prefix}{name}" for name, kind in named if kind is not None and one_of(kind, words)]
    return found


def module_of(path: Path) -> str:
    return ".".join(("portend", *path.relative_to(SOURCES).with_suffix("").parts))


def defined(tree: ast.Module) -> list[str]:
    """Names of what a module defines as one of a few words."""
    assigned = (node for node in tree.body if isinstance(node, ast.Assign))
    literal = (node for node in assigned if ast.unparse(node.value).startswith("Literal['"))
    return [target.id for node in literal for target in node.targets if isinstance(target, ast.Name)]


def private(name: str) -> bool:
    return name.startswith("_") and name != "__init__"


def one_of(annotation: ast.expr, words: set[str]) -> bool:
    text = ast.unparse(annotation)
    if text.startswith(("ClassVar", "Callable", "tuple", "Final", "Mapping")):
        return False
    names = {node.id for node in ast.walk(annotation) if isinstance(node, ast.Name)}
    return "Literal['" in text or bool(names & words)


@pytest.mark.parametrize(
    ("there", "here", "told"),
    [
        ({"a": 1, "b": [1, 2]}, {"b": (1, 2), "a": 1}, ""),
        ({"a": 1, "o": {"x": 3, "y": "u"}}, {"a": 1, "o": {"x": 3, "y": "v"}}, 'o.y: "u", now "v"'),
        ({"a": 1}, {"a": 2, "b": 3}, "a: 1, now 2"),
        ({}, {"b": [1]}, "b: null, now [1]"),
    ],
)
def test_the_first_difference_is_named_by_its_key(there: object, here: object, told: str) -> None:
    assert first_difference(there, here) == told


NAMED_BY_INDEX = {
    "values/plan.py: tier {tier}": "a plan alone does not know what its tiers are called",
}
"""Where messages may say an index, and why."""


def test_messages_call_tiers_by_name_and_count_blocks_and_exits_from_one() -> None:
    found = {}
    for path in sorted(SOURCES.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.JoinedStr):
                continue
            for text, value in pairwise(node.values):
                if not (isinstance(text, ast.Constant) and isinstance(value, ast.FormattedValue)):
                    continue
                noun = re.search(r"\b(tiers?|blocks?|exits?|partitions?|plan|link) $", str(text.value))
                index = ast.unparse(value.value)
                if noun and re.fullmatch(r"([a-z_]+\.)?(tier|step|index|k|start|place|number|\w+_index)", index):
                    found[f"{path.relative_to(SOURCES).as_posix()}: {noun[1]} {{{index}}}"] = node.lineno
    assert sorted(set(found) - set(NAMED_BY_INDEX)) == [], "name it, or count from 1"
    assert sorted(set(NAMED_BY_INDEX) - set(found)) == []


def test_the_sign_of_entropy_is_explained_wherever_it_stands() -> None:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    told = {page.name: page.read_text(encoding="utf-8") for page in pages}
    assert [
        name for name, text in told.items() if "η" in text and "normalized entropy" not in " ".join(text.split())
    ] == []
