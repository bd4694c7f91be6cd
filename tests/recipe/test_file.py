"""A recipe is read as people write it, and a mistake is told with its place and what to write instead."""

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from compress.budget.limits import Cost
from compress.errors import UsageError
from compress.methods import METHODS
from compress.methods.adenel.settings import PUBLISHED, PUBLISHED_TUNE, Adenel
from compress.methods.scratch.settings import Scratch
from compress.recipe import file as recipe
from compress.recipe.keys import Duration
from compress.recipe.settings import Data, Recipe, Train
from compress.surgery.structure import construct

SMALL = """\
model:
  factory: compress.models:vgg
method:
  name: adenel
"""
Read = Callable[..., Recipe]


ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted((ROOT / "recipes").glob("*.yaml"))
assert len(SHIPPED) >= 19  # a place that holds none would let every test of them pass


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def read_text(text: str, overrides: Mapping[str, str] | None = None, budget: str | None = None) -> Recipe:
        path = tmp_path / "small.yaml"
        path.write_text(text, encoding="utf-8")
        return recipe.read(path, overrides, budget)

    return read_text


@pytest.fixture
def refused(read: Read, tmp_path: Path) -> Callable[..., list[str]]:
    def lines(text: str, overrides: Mapping[str, str] | None = None, budget: str | None = None) -> list[str]:
        with pytest.raises(UsageError) as caught:
            read(text, overrides, budget)
        return str(caught.value).replace(f"{tmp_path}{os.sep}", "").splitlines()

    return lines


def test_a_recipe_needs_only_a_factory_and_a_method(read: Read) -> None:
    small = read(SMALL)
    assert small.method == Adenel()
    assert small.data == Data()
    assert small.train == Train()
    assert (small.budget, small.align, small.seed, small.checkpoint) == (None, 1, 0, Duration(5.0, "epochs"))


@pytest.mark.parametrize("path", SHIPPED, ids=[path.stem for path in SHIPPED])
def test_every_shipped_recipe_builds_its_net_says_its_budget_and_how_to_run_it(path: Path) -> None:
    said = recipe.read(path)
    with torch.device("meta"):  # no numbers: some are large
        net = construct(said.model.factory, said.model.args, said.folder)
    assert any(parameter.requires_grad for parameter in net.parameters())
    assert said.limits(Cost(params=10, macs=100, thop=110, bytes=1000)).limits
    assert f"compress run recipes/{path.name}" in path.read_text()


def test_sections_with_nothing_below_have_their_defaults(read: Read) -> None:
    assert read(SMALL + "data:\ntrain:\nrequire:\nseed:\n") == read(SMALL)


def test_settings_are_frozen(read: Read) -> None:
    with pytest.raises(ValidationError):
        read(SMALL).seed = 1  # type: ignore[misc]


def test_numbers_are_read_as_people_write_them(read: Read) -> None:
    small = read(
        SMALL.replace("factory:", "args: {a: 010, b: 12:30, c: 2026-01-31, d: 1_000, e: .5, f: 0x10}\n  factory:")
        + "seed: 1e3\ntrain: {lr: 1e-3, weight_decay: 0}\ndata: {flip: yes, val: 5e3, source: 'mnist'}\n"
    )
    assert small.model.args == {"a": 10, "b": "12:30", "c": "2026-01-31", "d": 1000, "e": 0.5, "f": "0x10"}
    assert (small.seed, small.train.lr, small.train.weight_decay) == (1000, 0.001, 0.0)
    assert (small.data.flip, small.data.val) == (True, 5000)
    assert isinstance(small.data.val, int)


@pytest.mark.parametrize(
    ("added", "says"),
    [
        ("  tua: 0.5", "small.yaml:5: method.tua: unknown key; did you mean 'tau'?"),
        ("  tune:\n    epoch: 1", "small.yaml:6: method.tune.epoch: unknown key; did you mean 'epochs'?"),
        ("sede: 1", "small.yaml:5: sede: unknown key; did you mean 'seed'?"),
        ("export: {qqq: 1}", "small.yaml:5: export.qqq: unknown key; the keys here are bake_preprocessing, states."),
        ("<<: {seed: 1}", "small.yaml:5: <<: unknown key; the keys here are model, data,"),
        ("  tau: 1.5", "small.yaml:5: method.tau: expected a number of at most 1, got 1.5."),
        ("  tau: 0", "small.yaml:5: method.tau: expected a number above 0, got 0."),
        ("  tau: true", "small.yaml:5: method.tau: expected a number, got true."),
        ("  tau: .nan", "small.yaml:5: method.tau: expected a number, got '.nan'."),
        ("  tau: nan", "small.yaml:5: method.tau: expected a finite number, got 'nan'."),
        ("  round: 10", "small.yaml:5: method.round: expected a duration such as '10 epochs'"),
        ("  round: 0 steps", "small.yaml:5: method.round: expected a duration above zero, got '0 steps'."),
        ("  round: 1.5 steps", "small.yaml:5: method.round: expected a duration"),
        ("  lambda_mode: filters", "'layer' or 'filter', got 'filters'; did you mean 'filter'?"),
        ("  tune: 3", "small.yaml:5: method.tune: expected keys and values, got 3."),
        ("train:\n  lr: fast", "small.yaml:6: train.lr: expected a number, got 'fast'."),
        ("train:\n  lr: -1", "small.yaml:6: train.lr: expected a number above 0, got -1."),
        ("train:\n  momentum: 1", "small.yaml:6: train.momentum: expected a number below 1, got 1."),
        ("train:\n  batch: 0", "small.yaml:6: train.batch: expected a number of at least 1, got 0."),
        ("train:\n  batch: 1.5", "small.yaml:6: train.batch: expected a whole number, got 1.5."),
        ("train: {nesterov: maybe}", "small.yaml:5: train.nesterov: expected true or false, got 'maybe'."),
        ("train: {nesterov: on, momentum: 0}", "small.yaml:5: train: nesterov needs momentum above 0"),
        ("data: {source: cifar}", "got 'cifar'; did you mean 'cifar10'?"),
        ("data: {source: npz}", "small.yaml:5: data: the source 'npz' needs a path"),
        ("data: {val: 1.0}", "small.yaml:5: data.val: expected a fraction above 0 and below 1"),
        ("data: {path: 3}", "small.yaml:5: data.path: expected text"),
        ("align: 4", "small.yaml:5: align: expected 1, 8 or 16, got 4."),
        ("seed: -1", "small.yaml:5: seed: expected a number of at least 0, got -1."),
        ("require: {val_accuracy: 97}", "small.yaml:5: require.val_accuracy: expected a number of at most 1, got 97."),
        ("require: {}", "small.yaml:5: require: write val_accuracy, val_score"),
        ("budget: 43MFLOPS", "small.yaml:5: budget: '43MFLOPS' is a rate"),
        ("budget: 43", "small.yaml:5: budget: A limit needs a number and a unit, got 43; write '43 MACs'."),
        ("budget: [43MMACs, 1MMACs]", "small.yaml:5: budget: Two limits in MACs"),
        ("budget: {limit: 43MMACs}", "small.yaml:5: budget: A budget is text or a list"),
        ("model: {}", "small.yaml:5: the key 'model' stands twice, first in line 1; keep one."),
        ("data: {val: 0.1, val: 0.2}", "small.yaml:5: the key 'data.val' stands twice, first in line 5"),
        ("a: &b 1\nc: *b", "small.yaml:6: aliases such as *name are not read"),
        ("a: !!python/name:os.system x", "small.yaml:5: the tag tag:yaml.org,2002:python/name:os.system is not read"),
        ("[1]: 2", "small.yaml:5: a key is a word"),
        ("seed: 1e999", "small.yaml:5: no number reads '1e999'."),
        ("seed: !!int x", "small.yaml:5: no number reads 'x'."),
        ("\tseed: 1", "small.yaml:5: not YAML: while scanning for the next token, found character '\\t'"),
        ("seed: [1", "small.yaml:6: not YAML:"),
        ("---\nseed: 1", "small.yaml:5: not YAML: expected a single document"),
        ("name: a\x07b", "small.yaml:5: not text: the character '\\x07' has no place here."),
        ("seed: " + "[" * 2000, "small.yaml: nested too deeply"),
    ],
)
def test_a_mistake_is_told_with_line_key_value_and_what_to_write(refused: Any, added: str, says: str) -> None:
    (line,) = refused(SMALL + added + "\n")
    assert says in line


def test_all_mistakes_are_told_a_line_each(refused: Any) -> None:
    assert refused("model:\n  factory: vgg\n  input: [3, 0]\nmethod: {name: adenal}\nsede: 1\n") == [
        "small.yaml:2: model.factory: expected 'package.module:callable' or './file.py:callable', got 'vgg'.",
        "small.yaml:3: model.input: expected whole numbers from 1, as [3, 32, 32] or, for two inputs, "
        "[[3, 8, 8], [10]], got [3, 0].",
        f"small.yaml:4: method.name: expected {', '.join(map(repr, METHODS))}, got 'adenal'; did you mean 'adenel'?",
        "small.yaml:5: sede: unknown key; did you mean 'seed'?",
    ]
    assert refused("seed: 1\nmethod: {}\nmodel: {input: [3, 0, 1]}\ndata: {std: [0.5, -1, 0.5]}\n") == [
        "small.yaml:3: model.factory: missing. Callable that builds the full net, required: "
        "'package.module:callable', or './file.py:callable' by the recipe.",
        "small.yaml:3: model.input: expected whole numbers from 1, as [3, 32, 32] or, for two inputs, "
        "[[3, 8, 8], [10]], got [3, 0, 1].",
        "small.yaml:4: data.std.1: expected a number above 0, got -1.",
        f"small.yaml:2: method.name: missing; write one of {', '.join(METHODS)}.",
    ]


def test_scratch_says_its_epochs_and_one_shape(read: Read, refused: Any) -> None:
    head = "model: {factory: './net.py:make'}\nmethod:\n  name: scratch\n"
    assert refused(head) == [
        "small.yaml:2: method.epochs: missing. Epochs. Required: a comparison is only as good as its equal cost."
    ]
    assert "keep one of them" in refused(head + "  epochs: 1\n  like: a\n  widths: {b: 1}\n")[0]
    assert read(head + "  epochs: 2\n  widths: {b: 1}\n").method == Scratch(epochs=2, widths={"b": 1})


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n"])
def test_an_empty_recipe_is_refused(refused: Any, text: str) -> None:
    assert refused(text) == ["small.yaml:1: the recipe is empty; it needs at least model and method."]


@pytest.mark.parametrize("text", ["hello", "- 1", "3"])
def test_a_recipe_is_a_mapping(refused: Any, text: str) -> None:
    assert refused(text)[0].startswith("small.yaml:1: expected keys and values such as 'seed: 0', got ")


@pytest.mark.parametrize("raw", [b"\x7fELF\0\1", b"\xff\xfe\0a", b"# \xe9", b"#" * (2**20 + 1)])
def test_a_file_that_is_no_text_is_refused(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "x.yaml").write_bytes(raw)
    with pytest.raises(UsageError, match=r"x\.yaml: not a recipe; .* UTF-8"):
        recipe.read(tmp_path / "x.yaml")


def test_a_path_that_is_no_file_is_refused_with_the_nearest_one(tmp_path: Path) -> None:
    (tmp_path / "quick.yaml").write_text(SMALL)
    with pytest.raises(UsageError, match="a folder; write the path"):
        recipe.read(tmp_path)
    with pytest.raises(UsageError, match=r"no such file; did you mean 'quick\.yaml'\?"):
        recipe.read(tmp_path / "quik.yaml")
    with pytest.raises(UsageError, match="no such file; write the path"):
        recipe.read(tmp_path / "none" / "x")
    with pytest.raises(UsageError, match="cannot be read"):
        recipe.read("\0")


def test_overrides_come_after_the_file_and_the_budget_last(read: Read) -> None:
    text = SMALL + "budget: 43MFLOPs\ntrain:\n  lr: 0.1\n"
    said = {
        "train.lr": "1e-2",
        "model.args.depth": "16",
        "model.input": "[3, 32, 32]",
        "align": "none",
        "data.flip": "",
    }
    small = read(text, {**said, "data.flip": "on", "budget": "1MB"})
    assert (small.train.lr, small.model.args, small.model.input) == (0.01, {"depth": 16}, (3, 32, 32))
    assert (small.align, small.data.flip, small.budget) == (1, True, "1MB")
    assert read(text, {"budget": "1MB"}, "50% params, 2MB").budget == "50% params, 2MB"
    assert read(text, {"method": "{name: scratch, epochs: 1}"}).method == Scratch(epochs=1)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("method.tua", "0.5", "--set: method.tua: unknown key; did you mean 'tau'?"),
        ("trian.lr", "1", "--set: trian: unknown key; did you mean 'train'?"),
        ("train.lr", "-1", "--set: train.lr: expected a number above 0, got -1."),
        ("seed.x", "1", "--set: seed.x: 'seed' is 3 and has no keys below."),
        ("seed", "[", "--set seed: not YAML:"),
        ("seed", "*a", "--set seed: aliases"),
        ("seed", "{a: 1, a: 2}", "--set seed: the key 'a' stands twice"),
        ("", "1", "--set: '' is not a key; write --set train.lr=0.05."),
        ("a..b", "1", "--set: 'a..b' is not a key"),
        (
            "method.name",
            "adenal",
            f"--set: method.name: expected {', '.join(map(repr, METHODS))}, got 'adenal'",
        ),
    ],
)
def test_a_mistake_in_an_override_is_told_as_such(refused: Any, key: str, value: str, says: str) -> None:
    (line,) = refused(SMALL + "seed: 3\n", {key: value})
    assert line.startswith(says)


def test_a_mistake_in_the_budget_argument_is_told_as_such(refused: Any) -> None:
    assert refused(SMALL + "budget: 43MACs\n", None, "43M")[0].startswith(
        "--budget: '43M' has no unit; write '43MMACs'"
    )


def test_paths_in_overrides_start_where_the_process_runs(
    read: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    said = {"data.npz": "x.npz", "model.weights": "../w.safetensors", "model.factory": "net.py:make"}
    small = read(SMALL, said)
    assert small.folder == tmp_path
    assert (small.data.source, small.data.path) == ("npz", "sub/x.npz")
    assert (small.model.weights, small.model.factory) == ("w.safetensors", "sub/net.py:make")
    outside = read(SMALL, {"data.folder": "../../y", "model.factory": "compress.models:plain"})
    assert (outside.data.source, outside.data.path) == ("folder", str(tmp_path.parent / "y"))
    assert outside.model.factory == "compress.models:plain"
    assert read(SMALL, {"data.path": "null"}).data.path is None


def test_a_resolved_recipe_names_no_path_of_the_machine(read: Read, tmp_path: Path) -> None:
    said = {"model.factory": f"{tmp_path}/net.py:make", "data.npz": "/far/away/x.npz"}
    text = recipe.dump(read(SMALL, {**said, "model.weights": f"{tmp_path}/w/w.safetensors"}))
    resolved = yaml.safe_load(text)
    assert (resolved["model"]["factory"], resolved["data"]["path"]) == ("net.py:make", "x.npz")
    assert resolved["model"]["weights"] == "w/w.safetensors"
    assert str(tmp_path) not in text


def test_a_resolved_recipe_says_every_key_in_the_order_of_the_schema(read: Read) -> None:
    resolved = yaml.safe_load(recipe.dump(read(SMALL, {"method.preset": "published"})))
    whole = recipe.schema()
    assert list(resolved) == list(whole["properties"])
    assert list(resolved["method"]) == list(whole["$defs"]["Adenel"]["properties"])
    assert resolved["method"]["round"] == "10 epochs"


words = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF, exclude_categories=["Cc"]), max_size=8) | (
    st.sampled_from(["1e3", "yes", "~", "", "010", "=", "<<", "12:30", "2026-01-31", ".5", "null", "1_0", "-", "a: b"])
)
values = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | words


@given(
    st.dictionaries(words, st.recursive(values, lambda v: st.lists(v, max_size=3), max_leaves=5), max_size=4),
    st.fixed_dictionaries(
        {},
        optional={
            "preset": st.just("published"),
            "tau": st.floats(1e-9, 1),
            "round": st.integers(1, 10**6).map("{} steps".format) | st.integers(1, 99).map("0.{:02d} epochs".format),
            "tune": st.fixed_dictionaries(
                {}, optional={"epochs": st.floats(1e-3, 1e6), "schedule": st.just("onecycle")}
            ),
        },
    ),
    st.sampled_from([None, "50%", ["43MFLOPs", {"limit": "0.58Mparams", "level": "warn"}, {"limit": "2MB"}]]),
    st.floats(1e-6, 0.999) | st.integers(2, 10**6),
)
def test_a_resolved_recipe_reads_back_as_itself(args: Any, method: Any, budget: Any, val: float) -> None:
    said = {
        "model": {"factory": "a.b:c", "args": args},
        "method": {"name": "adenel", **method},
        "budget": budget,
        "data": {"val": val},
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(os.path.abspath(folder)) / "resolved.yaml"
        first = Recipe.model_validate(said).placed(path.parent)
        text = recipe.dump(first)
        path.write_text(text, encoding="utf-8")
        second = recipe.read(path)
    assert second == first
    assert recipe.dump(second) == text


def test_the_published_preset_fills_in_only_what_is_left_out(read: Read) -> None:
    published = read(SMALL, {"method.preset": "published"}).method.model_dump(mode="json")
    default = read(SMALL).method.model_dump(mode="json")
    changed = {**default, **PUBLISHED, "preset": "published", "tune": {**default["tune"], **PUBLISHED_TUNE}}
    assert published == changed
    said = read(SMALL, {"method.preset": "published", "method.tau": "0.5", "method.tune.epochs": "3"}).method
    assert isinstance(said, Adenel)
    assert (said.tau, said.seed_width, said.tune.epochs, said.tune.schedule) == (0.5, 16, 3, "steps")


def test_a_recipes_limits_are_of_the_base_and_never_absent(read: Read) -> None:
    base = Cost(params=10, macs=100, thop=110, bytes=1000)
    listed = read(SMALL + "budget: [50%, {limit: 50% B, level: warn}]\n").limits(base)
    assert [(limit.unit, limit.limit, limit.level) for limit in listed.limits] == [
        ("FLOPs", 55, "error"),
        ("B", 500, "warn"),
    ]
    assert read(SMALL, None, "43MMACs").limits().limits[0].limit == 43_000_000
    with pytest.raises(UsageError, match="states no budget"):
        read(SMALL).limits(base)


def test_a_duration_lasts_at_least_a_step_unless_it_is_zero() -> None:
    assert [Duration.parse(text).steps(390) for text in ("1 epoch", "0.5epochs", "100 steps", "0.001 epochs")] == [
        390,
        195,
        100,
        1,
    ]
    assert Duration.parse("0 steps").steps(390) == 0
    assert [str(Duration.parse(text)) for text in ("1 epochs", "2 epoch", "0.50 epochs")] == [
        "1 epoch",
        "2 epochs",
        "0.5 epochs",
    ]


def test_the_schema_describes_every_key_and_agrees_with_the_reader(read: Read) -> None:
    whole = recipe.schema()
    jsonschema.Draft202012Validator.check_schema(whole)
    for part in [whole, *(part for part in whole["$defs"].values() if part)]:  # any JSON value has an empty schema
        assert part["additionalProperties"] is False
        assert part["title"]
        assert all(key["description"].endswith(".") for key in part["properties"].values())
    assert whole["$defs"]["Adenel"]["properties"]["round"]["default"] == "1 epoch"
    for text in (SMALL, SMALL + "budget: [43MFLOPs]\n", SMALL.replace("adenel", "{name: scratch, epochs: 1}")):
        said = yaml.safe_load(recipe.dump(read(text.replace("name: {", "{"))))
        jsonschema.validate(said, whole)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**said, "sede": 1}, whole)


anything = st.recursive(values, lambda v: st.lists(v, max_size=4) | st.dictionaries(words, v, max_size=4), max_leaves=8)
keys = st.sampled_from([*Recipe.model_fields, *(f"method.{k}" for k in Adenel.model_fields), "data.val", "model.input"])


@settings(max_examples=150)
@given(st.dictionaries(keys, anything, max_size=4))
def test_any_value_anywhere_is_read_or_refused_with_a_place(said: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "r.yaml"
        path.write_text(SMALL)
        mistakes = ""
        try:
            recipe.read(path, {key: yaml.safe_dump(value, default_flow_style=True) for key, value in said.items()})
        except UsageError as refused:
            mistakes = str(refused)
    assert all(line.startswith((f"{path}:", "--set")) and line.endswith((".", "?")) for line in mistakes.splitlines())
