"""report.html: contents, escaping of untrusted text, no requests; in a real browser if one is installed."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from test_analysis import CLASSIFICATION, TRANSLATION, binary, classified, random_records, translated, write_run

from trainer.errors import DataError
from trainer.report.attention import LARGEST, pack, read_attention
from trainer.report.formats import duration, round_words
from trainer.report.page import TEMPLATES, content_policy, environment, script_data
from trainer.report.report import analyse, write_index, write_report
from trainer.report.run_summary import parameters
from trainer.report.speed import speed_section
from trainer.report.task_report import open_report
from trainer.rundir import RunDir
from trainer.tasks.translation.report import word_diff

HOSTILE = (
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(2)>",
    "\"><svg onload=alert(3)> ' & &amp; {{ 7 * 7 }} {% raw %}",
    "<link rel=stylesheet href=http://evil.invalid/a.css><iframe src=//evil.invalid></iframe>",
    "<style>body { display: none }</style><base href=http://evil.invalid/>",
    "line\u2028and\u2029paragraph \u0085 next",
    "W" * 400,
    "\u202eright to left\u202c مرحبا بالعالم",
    "👨‍👩‍👧‍👦 🎬 half \ud83d of a pair",
    "<!-- --> <![CDATA[ ]]> <textarea> <plaintext>",
)
LABELS = ("<b>neg</b>", 'pos" onclick="alert(4)')
SCORES = {"accuracy": 0.9214, "accuracy_ci95": [0.905, 0.94], "f1": 0.92, "ece": 0.03, "loss": 0.2, "rows": 40}


def attention_rows(hostile: bool = False) -> dict[str, Any]:
    """Two rows of 2 layers and 3 heads, one with [CLS] and gradient x input."""
    draw = np.random.default_rng(3)
    rows = []
    for number, tokens in enumerate([["a", "##b", *(HOSTILE if hostile else "cde")], ["x", "y"]]):
        size = len(tokens)
        row = {
            "id": f"test.jsonl:{number}",
            "title": " ".join(tokens),
            "prediction": "p",
            "target": "t",
            "tokens": tokens,
        }
        row |= {
            "keys": tokens,
            "layers": 2,
            "heads": 3,
            "relevance": None if number else draw.normal(size=size).tolist(),
        }
        row |= {"weights": draw.dirichlet(np.ones(size), (2, 3, size)).round(3).tolist()}
        rows.append(row | ({} if number else {"cls": draw.dirichlet(np.ones(size), (2, 3)).round(3).tolist()}))
    return {"note": "special tokens <removed>", "rows": rows}


def malicious_run(path: Path) -> RunDir:
    """A classifier whose reviews, labels, tokens, name and scores are hostile; every hostile review is a sure error."""
    rows = [classified(n, LABELS[0], {LABELS[0]: 0.01, LABELS[1]: 0.99}, text) for n, text in enumerate(HOSTILE)]
    rows += [
        classified(100 + 2 * n + k, label, {label: 0.9, LABELS[1 - k]: 0.1})
        for n in range(15)
        for k, label in enumerate(LABELS)
    ]
    task = {"kind": "classification", "labels": dict(zip("01", LABELS, strict=True))}
    scores = SCORES | {"signature": HOSTILE[0]}
    return write_run(path / "<img src=x> & co", rows, task, scores, attention=attention_rows(hostile=True))


class Page(HTMLParser):
    """What a browser's parser sees: elements with their attributes, text, and the text of scripts and styles."""

    def __init__(self, path: Path | str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.raw = "", {"script": [], "style": []}
        self._inside: list[str] = []
        self.feed(path if isinstance(path, str) else path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in self.raw:
            self.raw[tag].append("")
        self._inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._inside and self._inside.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        inside = self._inside[-1] if self._inside else ""
        if inside in self.raw:
            self.raw[inside][-1] += data
        else:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def assert_self_contained(page: Page) -> None:
    """No element or attribute that loads, acts or styles but the page's own style sheet and script, allowed by hash."""
    policy = next(meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert (
        policy and "unsafe" not in policy and policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    )
    loading = {"img", "iframe", "object", "embed", "base", "video", "audio", "image", "textarea", "foreignobject"}
    for tag, attributes in page.elements:
        assert tag not in loading, tag
        for name, value in attributes.items():
            assert not name.startswith("on") and name not in ("style", "src", "srcset", "action", "poster"), (tag, name)
            if name.endswith("href"):
                assert value and (value.startswith(("#", "data:,")) or tag == "a"), (tag, value)
                assert not re.match(r"[a-z]+:|//", value.removeprefix("data:,")), value
    for kind, texts in (("style", page.raw["style"]), ("script", page.raw["script"][1:])):
        assert len(texts) <= 1
        for text in texts:
            digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
            assert f"{kind}-src 'sha256-{digest}'" in policy
            assert "url(" not in text and "@import" not in text and "http" not in text


def test_malicious_text_is_escaped(tmp_path: Path) -> None:
    page = Page(write_report(malicious_run(tmp_path), "test"))
    assert_self_contained(page)
    for text in (*HOSTILE, *LABELS, "<img src=x> & co"):
        assert text.replace("\ud83d", "\ufffd") in page.text, text
    assert [script.get("type") for script in page.all("script")] == ["application/json", None]
    data = json.loads(page.raw["script"][0])
    assert data["rows"][0]["tokens"] == ["a", "##b", *HOSTILE] and "<" not in page.raw["script"][0]


def test_the_order_of_summary_and_contents(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", random_records(40), CLASSIFICATION, SCORES, attention=attention_rows())
    page = Page(write_report(run, "test"))
    order = ["story", "scores", "curves", "confusion", "calibration", "errors", "attention", "configuration"]
    found = [attributes["id"] for _, attributes in page.elements if attributes.get("id") in order]
    assert found == order
    assert [a["href"] for a in page.all("a")[1:]] == [f"#{name}" for name in order]
    for words in (
        "92.1%",
        "95%: 90.5% to 94.0%",
        "ddp on 2 ranks",
        "1,200 labelled texts",
        "drawn again",
        "2.13.0",
    ):
        assert words in page.text, words
    assert "Answering “" in page.text and "not an explanation" in page.text
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_the_rows_of_a_page_are_those_of_its_scores(tmp_path: Path) -> None:
    """A report analyzes the first rows of a large split, and its scores are of all."""
    run = write_run(tmp_path / "run", random_records(40), CLASSIFICATION, {**SCORES, "rows": 250_000})
    assert "On the 250,000 rows of the test split" in Page(write_report(run, "test")).text
    report = open_report(run, "test", most=2)
    assert (len(report.records), report.rows_scored) == (2, 250_000)
    report.scores.clear()
    assert report.rows_scored == 2


@pytest.mark.parametrize(("beam_size", "own"), [(1, 1), (4, 5)])
def test_the_speeds_of_a_page_are_those_of_the_decoding_of_the_run(tmp_path: Path, beam_size: int, own: int) -> None:
    spread = {"median": 2.0, "low": 1.5, "high": 2.5}
    line = {f"p{p}_ms": 1.0 for p in (50, 95, 99)} | {"rows_per_second": 1.0, "tokens_per_second": 1.0}
    courses = [
        {"batch": 8, "beam": beam, "rounds": 8, "contestants": {"int8": {**line, "times_baseline": spread}}}
        for beam in (1, 5)
    ]
    about = {"what": "int8", "device": "cpu", "peak_bytes": 1, "cold_start_seconds": 1.0, "bytes": 1}
    benchmark = {
        "format": 3, "courses": courses, "recommended": {"8": "int8"}, "not_recommended": {}, "left_out": {},
        "contestants": {"int8": about}, "max_length": 32, "texts": 9, "threads": 1, "machine": {"cpu": "x"},
        "notes": [],
    }  # fmt: skip
    (tmp_path / "export").mkdir()
    (tmp_path / "export/benchmark.json").write_text(json.dumps(benchmark))
    report: Any = SimpleNamespace(
        run=RunDir(tmp_path),
        recipe={"evaluation": {"beam_size": beam_size}},
        beam_search=True,
        bench_baseline="{length}",
    )
    (section,) = speed_section(report)
    assert section.data["beam"] == own
    html = environment(html=True).get_template(section.template).render(data=section.data)
    marked = {part[:2]: "<strong>int8</strong>" in part for part in html.split("<h3>Batch 8, ")[1:]}
    assert marked == {"gr": own == 1, "be": own == 5}


def test_the_same_run_gives_the_same_page(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", random_records(40), CLASSIFICATION, SCORES)
    first = write_report(run, "test").read_bytes()
    assert write_report(run, "test").read_bytes() == first


def test_missing_files_of_a_run_are_left_out(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [binary(n, "positive", 0.9) for n in range(3)], CLASSIFICATION)
    for path in (run.metrics, run.manifest, run.status, run.evaluation("test") / "metrics.json"):
        path.unlink()
    page = Page(write_report(run, "test"))
    assert_self_contained(page)
    ids = {attributes.get("id") for _, attributes in page.elements}
    assert {"story", "confusion", "errors", "configuration"} <= ids and not ids & {"scores", "curves", "attention"}
    assert "All 3 rows are right." in page.text and page.all("script") == []
    assert "script-src 'none'" in page.all("meta")[1]["content"]


def test_a_split_with_one_class_has_fewer_numbers(tmp_path: Path) -> None:
    scores = {"accuracy": 1.0, "accuracy_ci95": [1.0, 1.0], "roc_auc": None, "mcc": None, "rows": 3}
    run = write_run(tmp_path / "run", [binary(n, "positive", 0.9) for n in range(3)], CLASSIFICATION, scores)
    page = Page(write_report(run, "test"))
    assert "100.0%" in page.text and "ROC-AUC" not in page.text


def test_bars_end_where_the_scale_does(tmp_path: Path) -> None:
    """Three long texts, all wrong, beside many short ones with few errors, which set the scale."""
    labels = ("negative", "positive")
    rows = [classified(n, labels[n % 2], {labels[n % 2]: 0.9, labels[1 - n % 2]: 0.1}, "short") for n in range(200)]
    rows += [classified(300 + n, labels[0], {labels[0]: 0.1, labels[1]: 0.9}, "long " * 200) for n in range(3)]
    page = Page(write_report(write_run(tmp_path / "run", rows, CLASSIFICATION), "test"))
    rects = page.all("rect")
    sizes = [(float(rect.get("x") or 0), float(rect["width"] or 0)) for rect in rects if rect.get("class")]
    assert len(sizes) > 8 and all(x >= 0 and width >= 0 and x + width <= 100.01 for x, width in sizes), sizes
    whiskers = [rect for rect in rects if rect.get("class") == "whisker"]
    assert len(whiskers) == 3 and all(float(rect["width"] or 0) > 0 for rect in whiskers), "not of the long texts"


def test_translation_report(tmp_path: Path) -> None:
    rows = [translated(n, f"Satz <b>{n}</b>", f"one <i>sentence</i> {n}", f"one sentence {n}") for n in range(12)]
    rows.append(translated(12, "Leer .", "", ""))
    scores = {
        "bleu": 42.14,
        "bleu_ci95": [40.6, 43.7],
        "chrf": 61.3,
        "length_ratio": 0.977,
        "signature": "nrefs:1",
        "rows": 13,
    }
    alignment = {"rows": [{**attention_rows()["rows"][1], "keys": ["eins", "zwei"]}]}
    run = write_run(tmp_path / "run", rows, TRANSLATION, scores, attention=alignment)
    page = Page(analyse(run, "test", train_texts=["Satz <b>3</b>"])[-1])
    assert_self_contained(page)
    for words in (
        "42.1",
        "95%: 40.6 to 43.7",
        "nrefs:1",
        "German to English",
        "Worst by chrF",
        "Where the decoder looked",
    ):
        assert words in page.text, words
    assert "1 of 13 source sentences is also" in page.text
    assert {"del", "ins"} <= {tag for tag, _ in page.elements}
    assert {"confusion", "calibration"}.isdisjoint({attributes.get("id") for _, attributes in page.elements})


def rows_of(kind: str, path: Path) -> tuple[RunDir, list[str]]:
    """A run with a distinct marker in every text, answer and token of a row, and those markers."""
    marks = [f"zq{n}x" for n in range(40)]
    if kind == "classification":
        rows = [binary(n, "negative", 0.9) | {"input": f"a {mark} b"} for n, mark in enumerate(marks)]
        return write_run(path, rows, CLASSIFICATION, SCORES, attention=attended(marks)), marks
    if kind == "translation":
        rows = [translated(n, f"satz {m}", f"line r{m}", f"line p{m}") for n, m in enumerate(marks)]
        return write_run(path, rows, TRANSLATION, {"bleu": 1.0, "rows": 40}, attention=attended(marks)), marks
    rows = [
        {"id": f"test.jsonl:{n}", "input": f"a {m} b", "target": "", "prediction": "", "loss": 9.0, "tokens": 9}
        for n, m in enumerate(marks)
    ]
    continued = {"rows": [{"id": "test.jsonl:0", "prompt": marks[0], "continuation": marks[1], "reference": marks[2]}]}
    task = {"kind": "language_modeling", "objective": "causal"}
    return write_run(path, rows, task, {"perplexity": 2.7, "rows": 40}, samples=continued), marks


def attended(marks: list[str]) -> dict[str, Any]:
    row = attention_rows()["rows"][1]
    return {"rows": [{**row, "tokens": marks[:2], "keys": marks[:2], "title": marks[3], "prediction": marks[4]}]}


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("good", "good"),
        (3.14159265, "3.142"),
        ({"fluency": 3.14159265, "adequacy": 4}, "fluency 3.142, adequacy 4"),
        (["billing", "polite"], "billing, polite"),
        ([], "(none)"),
    ],
)
def test_predictions_are_shown_as_lines(tmp_path: Path, value: Any, shown: str) -> None:
    run = write_run(tmp_path, [random_records(1)[0]], CLASSIFICATION)
    assert open_report(run, "test").shown(value, "a text") == shown


def test_entities_are_shown_with_their_words(tmp_path: Path) -> None:
    record = {"id": "a:0", "input": "Ada", "target": [], "prediction": [], "loss": 0.1, "tokens": 1}
    report = open_report(write_run(tmp_path, [record], {"kind": "token_classification", "labels": ["PER"]}), "test")
    entities = [{"start": 0, "end": 3, "label": "PER"}, {"start": 9, "end": 15, "label": "LOC"}]
    assert report.shown(entities, "Ada left London") == "Ada (PER), London (LOC)"
    assert report.shown([], "It rains") == "(none)"


@pytest.mark.parametrize("kind", ["classification", "translation", "language_modeling"])
def test_a_report_without_rows_quotes_none(tmp_path: Path, kind: str) -> None:
    run, marks = rows_of(kind, tmp_path / "run")
    train = [json.loads(line)["input"] for line in (run.evaluation("test") / "predictions.jsonl").open()][:3]
    page = analyse(run, "test", train_texts=train)[-1]
    assert any(mark in page.read_text() for mark in marks)
    assert "It contains rows of the data" in page.read_text()
    assert "sent to anyone" not in page.read_text()
    write_report(run, "test", with_rows=False)
    for _ in range(2):  # and when it is rendered again, as after `rankzero bench`
        text = page.read_text()
        assert_self_contained(Page(page))
        assert [mark for mark in marks if mark in text] == []
        assert "test.jsonl:" not in text
        assert "It contains no rows of the data" in text
        assert "3 of 40" in text  # numbers stay
        write_report(run, "test")
    write_report(run, "test", with_rows=True)
    assert any(mark in page.read_text() for mark in marks)


def test_index_links_the_reports(tmp_path: Path) -> None:
    one = write_run(tmp_path / "runs" / "a b&c", random_records(20), CLASSIFICATION, SCORES)
    two = write_run(tmp_path / "runs" / "t", [translated(0, "a", "b", "c")], TRANSLATION, {"bleu": 1.5})
    reports = [("<Sentiment>", write_report(one, "test")), ("Translation", write_report(two, "test"))]
    page = Page(write_index(reports, tmp_path / "runs" / "index.html"))
    assert_self_contained(page)
    assert [a["href"] for a in page.all("a")] == [
        "a%20b%26c/evaluation/test/report.html",
        "t/evaluation/test/report.html",
    ]
    for words in ("<Sentiment>", "92.1%", "1.5"):
        assert words in page.text


def test_word_diff_marks_missing_words() -> None:
    assert word_diff("a big dog runs", "a dog runs fast") == (
        [("a", ""), ("big", "del"), ("dog runs", "")],
        [("a", ""), ("dog runs", ""), ("fast", "ins")],
    )


def test_script_data_cannot_end_its_element() -> None:
    value = {"</script><!--": ["\u2028", "&", "\ud83d"]}
    text = str(script_data(value))
    assert text.isascii() and not set("<>&") & set(text) and json.loads(text) == value
    with pytest.raises(ValueError):
        script_data(float("nan"))


def test_policy_and_files_fit_each_other() -> None:
    style, script = ((TEMPLATES / name).read_text(encoding="utf-8") for name in ("style.css", "attention.js"))
    assert "</" not in style and "</" not in script and "innerHTML" not in script and "eval" not in script
    assert content_policy(style, script) != content_policy(style, script + " ")


def test_numbers_in_words(tmp_path: Path) -> None:
    assert [duration(s) for s in (5, 95, 7260)] == ["5 s", "1 min 35 s", "2 h 1 min"]
    assert [round_words(n) for n in (950, 22_713_216, 7_000_000_000)] == [
        "950",
        "22.7 million",
        "7.0 billion",
    ]
    save_file({"a": np.zeros((3, 4)), "b": np.zeros(())}, tmp_path / "model.safetensors", {"format": "np"})
    assert parameters(tmp_path) == 13 and parameters(tmp_path / "none") is None
    (tmp_path / "model.safetensors").write_bytes(b"\x10")
    assert parameters(tmp_path) is None


# -- attention ---------------------------------------------------------------------------------------------------------


def test_attention_is_the_mean_first_and_packed_closely(tmp_path: Path) -> None:
    found = attention_rows()
    (tmp_path / "attention.json").write_text(json.dumps(found), encoding="utf-8")
    first, second = read_attention(tmp_path / "attention.json")
    mean = np.mean(found["rows"][0]["weights"], axis=(0, 1))
    assert np.array(first["shares"]) == pytest.approx(mean / mean.max(), abs=0.006)
    assert first["from_cls"] and not second["from_cls"] and second["relevance"] is None
    assert [joined for _, joined, _ in first["strip"]][:3] == [False, True, False]
    assert max(abs(shade) for *_, shade in first["relevance"]) == 10
    weights = np.array([0.0, 0.001, 0.01, 0.3, 1.0])
    roots = np.frombuffer(base64.b64decode(pack(weights)), dtype=np.uint8)
    assert (roots / 255.0) ** 2 == pytest.approx(weights, abs=0.004)
    assert read_attention(tmp_path / "none.json") == []
    empty = {**found["rows"][0], "tokens": [], "weights": [[[]] * 3] * 2}
    (tmp_path / "attention.json").write_text(json.dumps({"rows": [empty, found["rows"][1]]}), encoding="utf-8")
    assert [row["number"] for row in read_attention(tmp_path / "attention.json")] == [1]


def test_long_rows_are_shortened(tmp_path: Path) -> None:
    size = LARGEST + 10
    row = attention_rows()["rows"][1] | {"tokens": ["w"] * size, "keys": ["w"] * size, "layers": 1, "heads": 1}
    row["weights"] = np.full((1, 1, size, size), 1 / size).tolist()
    (tmp_path / "attention.json").write_text(json.dumps({"rows": [row]}), encoding="utf-8")
    (found,) = read_attention(tmp_path / "attention.json")
    assert found["cut"] == (LARGEST, size, LARGEST, size)
    assert np.shape(found["shares"]) == (LARGEST, LARGEST) and len(found["strip"]) == size


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"heads": 4}, r"row 'test\.jsonl:0', weights: shape \(2, 3, 5, 5\).*need \(2, 4, 5, 5\)"),
        ({"relevance": [1.0]}, r"relevance: shape \(1,\) does not fit"),
        ({"relevance": [1.0, 2.0, 3.0, 4.0, "x"]}, "relevance: numbers in 1 even dimensions"),
        ({"cls": [[[2.0] * 5] * 3] * 2}, "cls: a number is not finite or, for a weight, not from 0 to 1"),
        ({"tokens": None}, r"attention\.json: a row lacks or misuses"),
    ],
)
def test_attention_that_does_not_fit_is_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    found = attention_rows()
    found["rows"][0] |= change
    (tmp_path / "attention.json").write_text(json.dumps(found), encoding="utf-8")
    with pytest.raises(DataError, match=words):
        read_attention(tmp_path / "attention.json")


# -- a real browser ----------------------------------------------------------------------------------------------------

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = ("--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync")
HARNESS = """<!DOCTYPE html><title>waiting</title><iframe id="f" width="375" height="800" src="{src}"></iframe>
<pre id="out"></pre><script>
const frame = document.getElementById("f");
frame.onload = () => {{
  const page = frame.contentDocument, out = {{}};
  const rects = () => [...page.querySelectorAll("#matrix-1 .cells rect")];
  const cells = () => rects().map((rect) => rect.getAttribute("fill-opacity"));
  out.width = [page.documentElement.clientWidth, page.documentElement.scrollWidth];
  page.querySelectorAll("details").forEach((d) => {{ d.open = true; }});
  out.opened = page.documentElement.scrollWidth;
  out.mean = cells();
  const head = page.getElementById("choose-head");
  head.value = "2";
  head.dispatchEvent(new Event("change", {{ bubbles: true }}));
  out.head = cells();
  out.view = page.querySelector("#attention-1 .view").textContent;
  out.hash = frame.contentWindow.location.hash;
  const matrix = page.getElementById("matrix-1");
  for (const key of ["ArrowRight", "ArrowRight", "ArrowDown"])
    matrix.dispatchEvent(new frame.contentWindow.KeyboardEvent("keydown", {{ key }}));
  out.readout = page.querySelector("#attention-1 .readout").textContent;
  const row = page.getElementById("choose-row");
  row.value = "2";
  row.dispatchEvent(new Event("change", {{ bubbles: true }}));
  out.hidden = [1, 2].map((n) => page.getElementById(`attention-${{n}}`).hidden);
  document.getElementById("out").textContent = JSON.stringify(out);
}};
</script>"""


class _Seen(BaseHTTPRequestHandler):
    """A proxy that answers nothing and remembers who asked for what."""

    def _note(self) -> None:
        self.server.seen.append(self.path)  # type: ignore[attr-defined]
        self.send_error(404)

    do_GET = do_POST = do_CONNECT = do_HEAD = _note

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def proxy() -> Iterator[ThreadingHTTPServer]:
    """A server on a free port whose `seen` lists what it was asked for."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Seen)
    server.seen = []  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def browse(url: str, folder: Path, proxy: ThreadingHTTPServer, *flags: str) -> tuple[str, list[str], list[str]]:
    """The page as the browser has it, what its console said, and the hosts that it asked for."""
    if not CHROMIUM:
        pytest.skip("needs chromium (Debian: apt-get install chromium)")
    where = [f"--user-data-dir={folder / 'profile'}", f"--proxy-server=127.0.0.1:{proxy.server_port}"]
    words = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        *QUIET,
        *where,
        "--enable-logging=stderr",
        "--v=0",
    ]
    words += [*flags, "--virtual-time-budget=3000", "--dump-dom", url]
    done = subprocess.run(words, capture_output=True, text=True, encoding="utf-8", timeout=240)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    # the browser itself may call home (updates); a page of ours never names Google
    asked = [path for path in proxy.seen if not re.search(r"google|gvt1|gstatic|chromium", path)]  # type: ignore[attr-defined]
    return done.stdout, console, asked


def opacities(page: Page) -> list[float]:
    """Shades of the first matrix, row by row."""
    return [float(a["fill-opacity"] or 0) for a in page.all("rect") if "fill-opacity" in a]


@pytest.mark.browser
def test_browser_shows_a_malicious_run_as_text_without_requests(tmp_path: Path, proxy: ThreadingHTTPServer) -> None:
    report = write_report(malicious_run(tmp_path), "test")
    html, console, asked = browse(report.as_uri(), tmp_path, proxy)
    assert (console, asked) == ([], [])
    page = Page(html)
    assert len(page.all("script")) == 2 and not page.all("img") and not page.all("iframe")
    for text in HOSTILE[:5]:
        assert text in page.text, text
    control = tmp_path / "control.html"  # the same test sees what a page does that loads and complains
    control.write_text("<script>alert; nothing()</script><img src=http://evil.invalid/x>", encoding="utf-8")
    _, console, asked = browse(control.as_uri(), tmp_path, proxy)
    assert any("nothing is not defined" in line for line in console) and asked == ["http://evil.invalid/x"]


@pytest.mark.browser
@pytest.mark.slow
def test_browser_follows_the_address_to_a_layer_and_head(tmp_path: Path, proxy: ThreadingHTTPServer) -> None:
    found = attention_rows()
    run = write_run(tmp_path / "run", random_records(40), CLASSIFICATION, SCORES, attention=found)
    url = write_report(run, "test").as_uri()
    html, console, _ = browse(f"{url}#layer=2&head=3", tmp_path, proxy)
    weights = np.array(found["rows"][0]["weights"])[1, 2]
    assert console == []
    assert opacities(Page(html))[: weights.size] == pytest.approx((weights / weights.max()).ravel(), abs=0.02)
    assert "Layer 2, head 3" in Page(html).text
    mean, _, _ = browse(f"{url}#errors", tmp_path, proxy)
    average = np.array(found["rows"][0]["weights"]).mean(axis=(0, 1))
    assert opacities(Page(mean))[: average.size] == pytest.approx((average / average.max()).ravel(), abs=0.02)


@pytest.mark.browser
@pytest.mark.parametrize("kind", ["hostile", "plain"])
@pytest.mark.slow
def test_browser_on_a_phone_by_hand(tmp_path: Path, proxy: ThreadingHTTPServer, kind: str) -> None:
    """375 px wide: the page does not scroll sideways, also with all texts open; menus and arrow keys work."""
    if kind == "hostile":
        run = malicious_run(tmp_path)
    else:
        run = write_run(
            tmp_path / "run", random_records(40, [*"abcdefghijkl"]), CLASSIFICATION, SCORES, attention=attention_rows()
        )
    report = write_report(run, "test")
    harness = tmp_path / "harness.html"
    harness.write_text(HARNESS.format(src=report.as_uri()), encoding="utf-8")
    html, console, _ = browse(harness.as_uri(), tmp_path, proxy, "--allow-file-access-from-files")
    assert console == []
    out = json.loads(re.search(r'<pre id="out">(.*?)</pre>', html, re.DOTALL)[1].replace("&amp;", "&"))  # type: ignore[index]
    assert out["width"][0] == out["width"][1] == out["opened"]
    assert out["mean"] != out["head"] and out["view"] == "Mean over all layers, head 2"
    assert out["hash"] == "#row=1&layer=0&head=2" and out["hidden"] == [True, False]
    assert re.fullmatch(r"“##b” looks at “##b” with weight 0\.\d{3}", out["readout"])
