"""A stranger's text is shown as it is written: it moves no cursor, hides nothing, and is markup of nothing."""

import html
import json
import re
import unicodedata
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from onnx import TensorProto
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor, make_tensor_value_info
from reports import COUNTED, STEPS, build

from compress.cli import main
from compress.console import say, table, telling
from compress.export.page import markdown
from compress.export.picture import draw_history
from compress.texts import code, inert, inert_line, visible
from compress.training.events import Doing, Warned

# What must never reach anybody: C0 and C1 controls, ESC, DEL; marks of direction; separators; halves of characters.
FORBIDDEN = {*map(chr, range(0x20)), *map(chr, range(0x7F, 0xA0)), *map(chr, range(0xD800, 0xE000))}
FORBIDDEN |= set("\u061c\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
SMUGGLED = "\x1b[2J\x07\x9b1m\x7f\u202e\u2066\ud800\u2028\r\n| <img src=x onerror=alert(1)> [a](javascript:b) `c` **d**"
texts = st.text(st.characters() | st.sampled_from(sorted(FORBIDDEN)) | st.sampled_from("<>&|`*_[]()!#~$\\-+=:/. \n1w@"))
RENDER = MarkdownIt("commonmark").enable(["table", "strikethrough"])


@given(texts)
@example("".join(sorted(FORBIDDEN)))
def test_nothing_that_is_not_printable_is_left_and_all_that_is_stays(text: str) -> None:
    shown = visible(text)
    assert shown.isprintable()
    assert not FORBIDDEN & set(shown)
    assert visible(shown) == shown
    kept = visible(text, keep="\n\t")
    assert not (FORBIDDEN - {"\n", "\t"}) & set(kept)
    assert (kept.count("\n"), kept.count("\t")) == (text.count("\n"), text.count("\t"))
    assert "".join(c for c in text if c.isprintable()) == visible("".join(c for c in text if c.isprintable()))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J", r"\x1b[2J"),
        ("a\nb\tc\r", r"a\nb\tc\r"),
        ("\x7f\x9b", r"\x7f\x9b"),
        ("\u202eabc", r"\u202eabc"),
        ("\ud800", r"\ud800"),
        ("caf\u00e9 \u6f22\u5b57 \N{PILE OF POO}", "caf\u00e9 \u6f22\u5b57 \N{PILE OF POO}"),
    ],
)
def test_what_is_hidden_is_written_out_and_letters_stay_letters(text: str, shown: str) -> None:
    assert visible(text) == shown


def kinds(source: str) -> list[str]:
    """What a Markdown text is made of, without its words."""
    found = []
    for token in RENDER.parse(source):
        found.append(token.type)
        found += [inner.type for inner in token.children or [] if inner.type != "text_special"]
    return found


def words(source: str) -> str:
    """What a reader of the rendered text sees."""
    return html.unescape(re.sub(r"<[^>]+>", "", RENDER.render(source))).strip()


def flat(text: str) -> str:
    """A text as it is shown on a page: Markdown and HTML make one space of several."""
    return re.sub(r"\s+", " ", visible(text)).strip()


@given(texts.filter(lambda text: flat(text) != ""))
@example(SMUGGLED)
@example("# heading")
@example("1. list")
@example("    code")
@example("https://example.org www.example.org a@example.org")
def test_a_text_within_markdown_is_words_and_nothing_else(text: str) -> None:
    for source, like in (
        (f"x {inert(text)} y", "x a y"),
        (f"- {inert_line(text)}", "- a"),
        (f"# {inert(text)}.", "# a."),
    ):
        assert kinds(source) == kinds(like)
        assert flat(words(source)) == flat(words(like).replace("a", flat(text)))
        assert not re.search(r"://|www\.|@\w+\.", inert(text), re.IGNORECASE)
    assert kinds(f"x {code(text)} y") == kinds("x `a` y")
    head = "| a | b |\n|---|---|\n"
    cells = f"{head}| {inert(text)} | c |"
    assert kinds(cells) == kinds(f"{head}| a | c |")
    assert "<img" not in RENDER.render(cells)


def strange(name: str) -> dict[str, Any]:
    """A report in which a stranger's text stands wherever one may."""
    return {
        "spaces": [{"name": name, "width": 1, "full": 2, "frozen": name}],
        "history": [
            {"event": name, "step": 0, **COUNTED, "why": name},
            {"event": "b", "step": 9, **COUNTED, "why": "c"},
        ],
        "steps": [STEPS[0] | {"method": name}, STEPS[1]],
        "data": {"name": name, "counts": {name: 1}, "digest": name},
        "seeds": {name: 0},
        "notes": [name, name],
        "command": name,
        "environment": build().environment.plain() | {"cpu": name, "torch": name, "device": name},
    }


@given(texts.filter(lambda text: flat(text) != "" and "\\" not in text and text.isascii()))
@example(SMUGGLED.replace("\ud800", ""))
@example("/a|b")
def test_a_page_of_a_stranger_has_the_parts_of_any_other_page(name: str) -> None:
    page = markdown(build(**strange(name.encode("utf-8", "replace").decode())))
    assert not (FORBIDDEN - {"\n"}) & set(page)
    assert kinds(page) == kinds(markdown(build(**strange("a"))))


def test_a_picture_of_a_stranger_is_xml_without_controls(tmp_path: Path) -> None:
    name = SMUGGLED.replace("\ud800", "")
    rows = [
        {"event": "round", "step": step, **COUNTED, "method": method, "widths": {name: step + 1}, "val": 0.5}
        for step, method in ((1, "adenel"), (2, "adenel"), (3, name), (4, name))
    ]
    blocks = [{"block": name, "layers": [name], "sources": [name, "b"], "rows": [[1]]}]
    report = build(history=[*rows, {"event": "selected", "step": 5, **COUNTED, "connections": blocks}])
    assert draw_history(report, tmp_path / "history.svg")
    text = (tmp_path / "history.svg").read_text(encoding="utf-8")
    assert not (FORBIDDEN - {"\n"}) & set(text)
    assert "\\x1b[2J" in text
    tags = {element.tag.rpartition("}")[2] for element in ElementTree.fromstring(text).iter()}
    assert not tags & {"img", "script", "a", "foreignObject"}


# ---- where text leaves ----------------------------------------------------------------------------------------------


def clean(shown: str) -> None:
    assert not (FORBIDDEN - {"\n"}) & set(shown), shown


def test_results_errors_tables_and_events_are_shown_written_out(capsys: pytest.CaptureFixture[str]) -> None:
    say(SMUGGLED)
    say(SMUGGLED, err=True, bold=True)
    for line in table([SMUGGLED, "b"], [[SMUGGLED, "c"]]):
        say(line)
    with telling(quiet=False) as listen:
        listen(Doing(SMUGGLED))
        listen(Warned(SMUGGLED))
    for shown in capsys.readouterr():
        clean(shown)
        assert r"\x1b[2J\x07\x9b1m\x7f\u202e\u2066\ud800\u2028" in shown


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def named(name: str, kind: str = "MatMul") -> onnx.ModelProto:
    """An ONNX file with this name for whatever has one."""
    x, y = (make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", ("N", 3)), (name, ("N", 4))))
    weight = make_tensor(f"w{name}", TensorProto.FLOAT, (3, 4), np.ones(12).tolist())
    node = make_node(kind, ["x", f"w{name}"], [name], name=name, domain="" if kind == "MatMul" else "mine")
    opsets = [make_opsetid("", 20), make_opsetid("mine", 1)]
    model = make_model(make_graph([node], name, [x], [y], [weight]), ir_version=10, opset_imports=opsets)
    model.metadata_props.add(key=f"compress.{name}", value=name)
    return model


@pytest.mark.parametrize("kind", ["MatMul", f"Magic{SMUGGLED[:9]}\n"])
@pytest.mark.parametrize("options", ["", "--json"])
def test_the_names_of_a_file_reach_no_terminal(kind: str, options: str, place: Path) -> None:
    name = SMUGGLED.replace("\ud800", "")
    for model in (named(name, kind), named("plain", kind)):
        if model.graph.name == "plain":
            model.ClearField("metadata_props")
        onnx.save(model, "net.onnx")
        for budget in ("1MMACs", "1Mparams", "50%"):
            done = CliRunner().invoke(main, ["verify", "net.onnx", "--budget", budget, *options.split()])
            assert done.exit_code in (0, 2, 4)
            clean(done.output)
            assert done.stderr.count("\n") <= 1


def test_a_strangers_report_is_printed_written_out(place: Path) -> None:
    Path("run").mkdir()
    text = SMUGGLED.replace("\ud800", "")
    Path("run/report.md").write_text(f"# Kept\n\n{text}\n", encoding="utf-8")
    Path("run/report.json").write_text(json.dumps({"a\x1b": SMUGGLED}, ensure_ascii=True))
    page = CliRunner().invoke(main, ["report", "run"])
    assert page.exit_code == 0
    assert page.stdout.startswith("# Kept\n\n\\x1b[2J")
    data = CliRunner().invoke(main, ["report", "run", "--json"])
    assert json.loads(data.stdout) == {"a\x1b": SMUGGLED}
    for done in (page, data):
        clean(done.output)


def test_a_path_of_odd_bytes_is_told_and_breaks_nothing(place: Path) -> None:
    done = CliRunner().invoke(main, ["verify", "no\udcffne\x1b.onnx", "--budget", "1MMACs"])
    assert done.exit_code == 2
    clean(done.output)


def test_every_kind_of_forbidden_character_is_what_unicode_calls_no_text() -> None:
    assert {unicodedata.category(c) for c in FORBIDDEN} == {"Cc", "Cf", "Cs", "Zl", "Zp"}
