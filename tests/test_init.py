"""`rankzero init`: the recipe for rows of a user, what is printed, and the mistakes that are reported."""

from __future__ import annotations

import csv
import json
import random
import re
import shlex
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from docs_helpers import blocks
from typer.testing import CliRunner

from launch.cli import app
from trainer.data.root import Root
from trainer.data.sources import held_out, open_split
from trainer.data.split_files import find_splits
from trainer.data.survey import survey
from trainer.errors import DataError, UsageError
from trainer.init_recipe import steps
from trainer.init_recipe.build import draft
from trainer.init_recipe.lengths import Lengths
from trainer.init_recipe.render import render, scalar
from trainer.models import suggested
from trainer.recipe import read_yaml
from trainer.recipe_editor import SHIPPED_LINE
from trainer.recipe_loading import SHIPPED, load_recipe
from trainer.task.registry import roles_of

DRAW = random.Random(5)
WORDS = ["the", "app", "does", "not", "start", "after", "my", "update", "a", "refund", "for", "order", "please", "help"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    DRAW.seed(5)
    return tmp_path


def text(words: int = 8) -> str:
    return " ".join(DRAW.choices(WORDS, k=words)).capitalize() + "."


def write_csv(path: Path, header: list[str], rows: list[list[Any]], delimiter: str = ",") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows([header, *rows])


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def support_rows(rows: int = 200) -> list[list[Any]]:
    return [[number, text(), ("billing", "delivery", "technical")[number % 3]] for number in range(rows)]


def init(*words: str) -> str:
    """Run the command. Return what it prints."""
    done = CliRunner().invoke(app, ["init", *words])
    if done.exception is not None:
        raise done.exception
    return done.stdout


def recipe_of(*words: str) -> dict[str, Any]:
    """Return the values of the recipe that the command writes, which must be a valid one."""
    printed = init(*words, "-o", "made.yaml", "--force")
    assert "written: made.yaml" in printed
    load_recipe("made.yaml")
    return read_yaml(Path("made.yaml"))


# -- tasks and columns -------------------------------------------------------------------------------------------------


def test_labels_in_a_csv_file(here: Path) -> None:
    """Other splits are the neighbors, an id is no label, and the file is small: small steps, several epochs."""
    write_csv(here / "tickets/tickets.csv", ["id", "Message", "Topic"], support_rows())
    write_csv(here / "tickets/test.csv", ["id", "Message", "Topic"], support_rows(30))
    values = recipe_of("tickets/tickets.csv")
    assert values["name"] == "tickets"
    assert values["task"] == {"kind": "classification", "labels": ["billing", "delivery", "technical"]}
    data = values["data"]
    assert data["root"] == "tickets"
    assert (data["train"], data["validation"], data["test"]) == ("tickets.csv", 0.2, "test.csv")
    assert data["columns"] == {"text": "Message", "label": "Topic"}
    assert data["lanes"] * data["rows_per_batch"] == 8
    assert 160 * values["loop"]["epochs"] / 8 >= 150, "steps"
    assert values["loop"]["early_stopping"] == {"metric": "accuracy"}
    assert data["max_length"] == 64
    assert 2e-5 <= float(values["optim"]["lr"]) <= 2e-4


def test_the_printed_summary(here: Path) -> None:
    write_csv(here / "tickets.csv", ["id", "message", "topic"], support_rows(90))
    printed = init("tickets.csv")
    assert re.search(r"message +text +90 values.*characters: median \d+, longest \d+; English 100%", printed)
    assert "billing 30, delivery 30, technical 30" in printed
    assert "validation: " in printed and "20.0% of train" in printed
    assert "rankzero train tickets.yaml --debug" in printed
    recipe = Path("tickets.yaml").read_text(encoding="utf-8")
    assert "# the order of the ids" in recipe and "init found tokens: median" in recipe
    assert max(map(len, recipe.splitlines())) <= 120
    printed = init("tickets.csv", "-o", "mine.yaml")
    [again] = re.findall(r"to change: +rankzero init (.*)", printed)
    assert again.startswith("tickets.csv -o mine.yaml --force data.columns=")
    before = Path("mine.yaml").read_text(encoding="utf-8")
    init(*shlex.split(again))
    assert Path("mine.yaml").read_text(encoding="utf-8") == before, "the words are what was guessed"


@pytest.mark.parametrize(("kind", "key"), [("encoder", "layers"), ("cnn", "filters")])
def test_a_model_of_random_weights_is_written_on_request(here: Path, kind: str, key: str) -> None:
    write_csv(here / "tickets.csv", ["id", "message", "topic"], support_rows(90))
    values = recipe_of("tickets.csv", f"model.kind={kind}", f"model.{key}=2")
    assert (values["model"]["kind"], values["model"][key], "name" in values["model"]) == (kind, 2, False)
    assert values["tokenizer"]["train"]["kind"] == "wordpiece"
    assert float(values["optim"]["lr"]) == 2e-3


def test_rare_classes_are_selected_by_f1_and_are_in_validation(here: Path) -> None:
    rows = [*support_rows(300), *[[n, text(), "abuse"] for n in range(7)]]
    write_csv(here / "rows.csv", ["id", "message", "topic"], rows)
    values = recipe_of("rows.csv")
    assert values["loop"]["early_stopping"] == {"metric": "f1"}
    recipe = load_recipe("made.yaml")
    source = open_split(recipe.data, "validation", roles_of(recipe))
    assert source is not None
    assert "abuse" in survey(source, recipe.data, roles_of(recipe), "validation").labels


def test_a_class_that_no_share_reaches_leaves_the_usual_share(here: Path) -> None:
    """Equal rows are on the same side, so that a class of one text may be in no validation set."""
    shares = set()
    for word in map(str, range(6)):
        write_csv(
            here / "rows.csv", ["message", "topic"], [*[row[1:] for row in support_rows(600)], *[[word, "spam"]] * 9]
        )
        share = recipe_of("rows.csv")["data"]["validation"]
        row = {"label": "spam", "text": word}
        assert held_out(row, share) or (share == 0.15 and not held_out(row, 0.25))
        shares.add(held_out(row, share))
    assert False in shares
    assert steps.validation_shares(600) == [0.15, 0.2, 0.25]
    assert steps.validation_shares(5000) == [0.1, 0.15, 0.2]


def test_numbers_are_labels_with_names_to_give(here: Path) -> None:
    write_jsonl(here / "rows.jsonl", [{"review": text(), "stars": n % 5 + 1} for n in range(100)])
    assert recipe_of("rows.jsonl")["task"]["labels"] == {str(n): str(n) for n in range(1, 6)}


def test_pairs_of_texts(here: Path) -> None:
    header, kinds = ["sentence_A", "sentence_B", "score", "judgment"], ["YES", "NO"]
    write_csv(here / "a.tsv", header, [[text(), text(9), n / 7, kinds[n % 2]] for n in range(80)], "\t")
    values = recipe_of("a.tsv")
    assert values["task"] == {"kind": "classification", "labels": ["NO", "YES"], "pair": True}
    assert values["data"]["columns"] == {"text": "sentence_A", "text_pair": "sentence_B", "label": "judgment"}


def test_several_labels_in_lists_and_in_texts(here: Path) -> None:
    lists = [["a"], ["a", "b"], [], ["c"]]
    write_jsonl(here / "lists.jsonl", [{"body": text(), "tags": lists[n % 4]} for n in range(80)])
    values = recipe_of("lists.jsonl")
    assert values["task"] == {"kind": "classification", "mode": "multi", "labels": ["a", "b", "c"]}
    assert values["data"]["columns"] == {"text": "body", "labels": "tags"}
    assert values["loop"]["early_stopping"] == {"metric": "f1_micro"}
    write_csv(here / "texts.csv", ["body", "genres"], [[text(), "|".join(lists[n % 4]) or "d"] for n in range(80)])
    task = recipe_of("texts.csv")["task"]
    assert task == {"kind": "classification", "mode": "multi", "labels": ["a", "b", "c", "d"], "separator": "|"}


def test_numbers_that_are_no_labels(here: Path) -> None:
    write_csv(here / "rows.csv", ["id", "text", "score"], [[n, text(), n / 7] for n in range(60)])
    values = recipe_of("rows.csv")
    assert values["task"] == {"kind": "classification", "mode": "regression"}
    assert values["data"]["columns"] == {"value": "score"}
    assert values["loop"]["early_stopping"] == {"metric": "pearson"}


def test_markup_and_long_texts(here: Path) -> None:
    """Tags are removed, and long texts keep their end."""
    write_jsonl(here / "rows.jsonl", [{"text": f"<b>{text(700)}</b><br /> &amp;", "label": n % 2} for n in range(40)])
    values = recipe_of("rows.jsonl")
    assert values["data"]["cleaning"][:2] == ["unescape_html", "strip_tags"]
    assert (values["task"]["truncation"], values["data"]["max_length"]) == ("head_tail", 512)


def test_tokens_with_tags(here: Path) -> None:
    rows = [{"words": ["Ada", "lives", "here"], "ner": ["B-PER", "O", "O" if n % 2 else "B-LOC"]} for n in range(60)]
    write_jsonl(here / "rows.jsonl", rows)
    values = recipe_of("rows.jsonl")
    assert values["task"] == {"kind": "token_classification", "labels": ["LOC", "PER"]}
    assert values["data"]["columns"] == {"tokens": "words", "tags": "ner"}
    assert values["loop"]["early_stopping"] == {"metric": "f1"}
    rows = [{"words": ["Ada", "Bo", "met"], "ner": ["I-PER", "B-PER" if n % 2 else "O", "O"]} for n in range(60)]
    write_jsonl(here / "rows.jsonl", rows)
    assert recipe_of("rows.jsonl")["task"]["scheme"] == "iob1"


def test_tokens_with_tags_in_parquet_and_spans(here: Path) -> None:
    rows = {"tokens": [["Ada", "ran"]] * 40, "tags": [["B-PER", "O"]] * 40, "raw": [b"\xff"] * 40}
    pq.write_table(pa.table(rows), here / "rows.parquet")
    assert recipe_of("rows.parquet")["task"] == {"kind": "token_classification", "labels": ["PER"]}
    spans = [{"start": 0, "end": 3, "label": "PER"}]
    write_jsonl(here / "spans.jsonl", [{"text": "Ada ran", "entities": spans}] * 40)
    values = recipe_of("spans.jsonl")
    assert values["task"] == {"kind": "token_classification", "labels": ["PER"], "rows": "text"}
    assert values["data"]["columns"] == {"spans": "entities"}


def test_translation_in_columns_and_in_parallel_files(here: Path) -> None:
    write_jsonl(here / "rows.jsonl", [{"translation": {"en": text(), "de": text()}} for _ in range(50)])
    values = recipe_of("rows.jsonl")
    assert values["task"] == {"kind": "translation", "src_language": "German", "trg_language": "English"}
    assert values["data"]["columns"] == {"src": "translation.de", "trg": "translation.en"}
    for name, rows in (("train", 60), ("dev", 9), ("test", 9)):
        for side in ("en", "fr"):
            (here / f"{name}.{side}").write_text("".join(text() + "\n" for _ in range(rows)), encoding="utf-8")
    (here / "rows.jsonl").unlink()
    for path in (".", "train.fr"):
        values = recipe_of(path)
        assert values["data"]["train"] == {"src": "train.fr", "trg": "train.en"}
        assert values["data"]["validation"] == {"src": "dev.fr", "trg": "dev.en"}
        assert values["model"]["kind"] == "transformer" and values["loop"]["epochs"] == 40
    assert recipe_of("train.en")["task"]["trg_language"] == "French"


def test_rows_with_text_only_suggest_language_modeling(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "poems.txt").write_text("".join(text(30) + "\n" for _ in range(80)), encoding="utf-8")
    values = recipe_of("poems.txt")
    assert values["task"] == {"kind": "language_modeling", "objective": "causal"}
    assert values["model"] == {"kind": "pretrained", "architecture": "gpt2", "size": "small"}, "offline"
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert recipe_of("poems.txt")["model"] == {"kind": "pretrained", "name": suggested.GENERATOR}


def test_inputs_and_outputs_are_text_to_text(here: Path) -> None:
    write_jsonl(here / "rows.jsonl", [{"article": text(40), "highlights": text()} for _ in range(60)])
    values = recipe_of("rows.jsonl")
    assert values["task"] == {"kind": "text_to_text", "prefix": "summarize: "}
    assert values["data"]["columns"] == {"src": "article", "trg": "highlights"}


def test_the_user_decides(here: Path) -> None:
    write_csv(here / "rows.csv", ["title", "body", "topic", "team"], [
        [text(4), text(20), "ab"[n % 2], "xyz"[n % 3]] for n in range(90)
    ])  # fmt: skip
    assert recipe_of("rows.csv")["data"]["columns"] == {"text": "body", "label": "topic"}
    values = recipe_of("rows.csv", "data.columns={text: title, label: team}", "optim.lr=7e-5", "loop.epochs=2")
    assert values["data"]["columns"] == {"text": "title", "label": "team"}
    assert values["task"]["labels"] == ["x", "y", "z"]
    assert (values["optim"]["lr"], values["loop"]["epochs"]) == (7e-5, 2)
    assert recipe_of("rows.csv", "--task", "language_modeling")["task"]["kind"] == "language_modeling"


# -- files -------------------------------------------------------------------------------------------------------------


def test_bad_rows_are_counted_and_left_out(here: Path) -> None:
    rows = support_rows(200)
    rows[10][1], rows[50][1], rows[51][1] = "", "  ", ""
    write_csv(here / "rows.csv", ["id", "message", "topic"], rows)
    printed = init("rows.csv")
    assert 'rows.csv, 2 rows (line 12 (row 11), line 53 (row 52)), column "message": is empty' in printed
    data = read_yaml(Path("rows.yaml"))["data"]
    assert data["on_bad_row"] == "skip" and 0.015 <= data["max_bad_fraction"] <= 0.1


def test_a_csv_file_without_a_header_and_with_another_encoding(here: Path) -> None:
    write_csv(here / "bare.csv", [text(), "pos"], [[text(), ("pos", "neg")[n % 2]] for n in range(60)])
    data = recipe_of("bare.csv")["data"]
    assert data["header"] is False and data["columns"] == {"text": "0", "label": "1"}
    rows = "".join(f"{text()} ä;{'ab'[n % 2]}\n" for n in range(60))
    (here / "old.csv").write_bytes(("text;label\n" + rows).encode("cp1252"))
    assert recipe_of("old.csv", "data.encoding=latin-1")["data"]["encoding"] == "latin-1"
    (here / "old.csv").write_bytes(b"text;label\n" + b"caf\xe9;x\ncaf\xe9 2;y\n" * 30)
    with pytest.raises(DataError, match=r"(?s)old.csv.*invalid UTF-8.*data.encoding"):
        init("old.csv")


def test_a_test_split_without_labels_is_left_out(here: Path) -> None:
    write_jsonl(here / "train.jsonl", [{"text": text(), "label": "ab"[n % 2]} for n in range(60)])
    write_jsonl(here / "test.jsonl", [{"text": text()} for _ in range(20)])
    assert "data.test is left out" in init(".", "-o", "made.yaml")
    assert "test" not in read_yaml(Path("made.yaml"))["data"]


@pytest.mark.parametrize(
    ("names", "path", "train", "validation", "test"),
    [
        (["train.csv", "dev.csv", "README.md"], "", "train.csv", "dev.csv", None),
        (["train.tsv.gz", "dev.tsv", "test.tsv"], "", "train.tsv.gz", "dev.tsv", "test.tsv"),
        (["a_train.jsonl", "train.jsonl", "a_val.jsonl", "val.jsonl"], "a_train.jsonl", "a_train.jsonl", "a_val.jsonl",
         None),
        (["d/train-0-of-2.parquet", "d/train-1-of-2.parquet", "d/test-0-of-1.parquet"], "", "d/train-*-of-*.parquet",
         None, "d/test-0-of-1.parquet"),
        (["train/1.jsonl", "train/2.jsonl", "test/1.jsonl"], "", "train/*.jsonl", None, "test/1.jsonl"),
        (["mine.csv", "test.csv"], "mine.csv", "mine.csv", None, "test.csv"),
        (["mine.csv", "other.jsonl"], "mine.csv", "mine.csv", None, None),
        (["p1.csv", "p2.csv", "p2.csv.bak"], "", "p*.csv", None, None),
        (["p[1].csv", "p[2].csv"], "", "p[[]*].csv", None, None),
        (["p[1].csv", "q.csv"], "p[1].csv", "p[1].csv", None, None),
    ],
)  # fmt: skip
def test_splits_by_name(
    here: Path, names: list[str], path: str, train: str, validation: str | None, test: str | None
) -> None:
    for name in names:
        (here / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (here / "root" / name).write_text("x\n")
    files = find_splits(f"root/{path}" if path else "root")
    assert (files.root, files.train, files.validation, files.test) == ("root", train, validation, test)
    assert len(Root("root").match(train, "train")) > ("*" in train)


# -- mistakes ----------------------------------------------------------------------------------------------------------


def test_a_recipe_is_not_overwritten(here: Path) -> None:
    write_csv(here / "rows.csv", ["id", "message", "topic"], support_rows(60))
    init("rows.csv")
    Path("rows.yaml").write_text("mine")
    with pytest.raises(UsageError, match=r"rows.yaml exists; --force"):
        init("rows.csv")
    assert Path("rows.yaml").read_text() == "mine"
    init("rows.csv", "--force")
    assert read_yaml(Path("rows.yaml"))["name"] == "rows"


def test_files_that_do_not_fit(here: Path) -> None:
    with pytest.raises(UsageError, match=r"missing.csv does not exist; there: nothing"):
        init("missing.csv")
    (here / "x.docx").write_text("x")
    with pytest.raises(DataError, match=r"unknown format '.docx'; known are .jsonl"):
        init("x.docx")
    with pytest.raises(DataError, match=r"cannot be opened.*gcsfs"):
        init("gs://bucket/rows.csv")
    (here / "empty.csv").write_text("text,label\n")
    with pytest.raises(DataError, match=r"empty.csv has no rows"):
        init("empty.csv")
    write_csv(here / "letters.csv", ["subject", "letter"], [[f"{text()} {n}", f"{text(20)} {n}"] for n in range(50)])
    with pytest.raises(
        UsageError, match=r"no columns that fit a task.*'letter' \(text, many different.*data.columns=\{text: COLUMN"
    ):
        init("letters.csv")
    with pytest.raises(UsageError, match=r"no columns that fit task token_classification"):
        init("letters.csv", "--task", "token_classification")
    with pytest.raises(UsageError, match=r"task.kind='clasification' is not known"):
        init("letters.csv", "--task", "clasification")
    assert not list(here.glob("*.yaml"))


def test_a_run_is_named_after_the_folder_of_train_files(here: Path) -> None:
    for name in ("train.csv", "train-00000-of-00001.csv", "trains.csv"):
        write_csv(here / "mail" / name, ["text", "label"], [[text(), "ab"[n % 2]] for n in range(20)])
    names = [recipe_of(f"mail/{p.name}")["name"] for p in sorted((here / "mail").iterdir())]
    assert names == ["mail", "mail", "trains"]


def test_several_corpora_in_a_folder(here: Path) -> None:
    for name in ("train.csv", "types_train.csv"):
        write_csv(here / "root" / name, ["text", "label"], [[text(), "ab"[n % 2]] for n in range(20)])
    with pytest.raises(UsageError, match=r"train.csv, types_train.csv; name one of them: rankzero init root/train.csv"):
        init("root")


def test_mostly_bad_rows_are_refused(here: Path) -> None:
    rows = [{"text": text() if n % 3 == 0 else "", "label": "ab"[n % 2]} for n in range(90)]
    write_jsonl(here / "rows.jsonl", rows)
    with pytest.raises(DataError, match=r"data.train: 60 of [0-9]+ rows are bad: 60 x column 'text' is empty.*line 2 "):
        init("rows.jsonl")


# -- settings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 7, 50, 300, 1369, 5000, 25_000, 200_000, 5_000_000])
def test_steps_of_a_fine_tuning(rows: int) -> None:
    made = steps.fine_tuning(rows, 64)
    each = made.data["lanes"] * made.data["rows_per_batch"]
    assert made.data["lanes"] <= rows
    assert made.per_epoch == -(-rows // each)
    assert 1 <= made.epochs <= steps.MOST_EPOCHS
    assert made.total >= 150 or rows < 100
    assert made.total / made.log_every >= 3 or made.total < 3
    if rows == 1369:
        assert (each, made.epochs) == (16, 3)
    if rows == 25_000:
        assert (each, made.epochs, made.eval_every) == (32, 3, "epoch")
    if rows == 5_000_000:
        assert made.epochs == 1 and isinstance(made.eval_every, int)


def test_steps_from_scratch_have_evaluations_to_average() -> None:
    for rows in (100, 2000, 29_000, 1_000_000):
        made = steps.from_scratch(rows, 20.0, 64)
        assert made.epochs >= 5 and made.eval_every == "epoch"
        assert made.data["tokens_per_batch"] >= 64
    assert 2000 <= steps.from_scratch(29_000, 20.0, 64).total <= 8000


def test_rates_by_size(here: Path) -> None:
    def rate(width: int, layers: int, kind: str = "bert") -> float:
        folder = here / f"{kind}-{width}"
        folder.mkdir()
        config = {"model_type": kind, "hidden_size": width, "num_hidden_layers": layers}
        (folder / "config.json").write_text(json.dumps(config))
        return suggested.rate_of(str(folder))[0]

    rates = [rate(384, 6), rate(512, 8), rate(768, 12), rate(1024, 24)]
    assert rates == sorted(rates, reverse=True) and rates[0] == 1e-4 and rates[-1] == 2e-5
    few, many = (suggested.rate_for(str(here / "bert-384"), count)[0] for count in (200, 5000))
    assert (few, many) == (2e-4, 1e-4)
    assert suggested.rate_for(str(here / "bert-1024"), 200)[0] == 2e-5
    assert rate(512, 6, "t5") == 5e-4
    assert suggested.rate_of("some/bert-large-uncased")[0] == 2e-5
    assert suggested.rate_of("some/model-of-unknown-size")[0] == 5e-5


def test_max_length_covers_nearly_all_rows() -> None:
    assert Lengths((10, 11, 12, 20), True).max_length(512) == 64
    assert Lengths((10, 70, 80, 99), True).max_length(512) == 104
    assert Lengths((*[70] * 99, 900), True).max_length(512) == 72, "one long row"
    assert Lengths((700,) * 5, True).max_length(512) == 512
    assert Lengths((*[70] * 99, 900), True).cut(72) == 0.01


def test_rendered_yaml_has_the_same_values() -> None:
    values = {
        "name": "x",
        "task": {"labels": ["yes", "no", "1", "ä: ö", "a\nb", "- c", "#d"], "more": {"true": "x, y", "2": ""}},
        "data": {
            "train": "*.csv",
            "quote": None,
            "header": False,
            "lr": 0.01,
            "many": [f"class {n}" for n in range(40)],
        },
    }
    rendered = render(values, {"task.labels": "long " * 40, "data.train": "short"}, ["x", "", "y"])
    assert yaml.safe_load(rendered) == values
    assert max(map(len, rendered.splitlines())) <= 120
    assert [scalar(x) for x in (2e-4, 1.5e-5, 1e-9, 0.002, 0.1)] == ["2e-4", "1.5e-5", "1e-9", "0.002", "0.1"]


def test_every_key_of_a_comment_exists(here: Path) -> None:
    """A comment on a key that the recipe does not have would be lost."""
    write_csv(here / "rows.csv", ["id", "message", "topic"], support_rows(60))
    init("rows.csv")
    text = Path("rows.yaml").read_text(encoding="utf-8")
    for words in ("rows of a step", "at most as many GPUs", "before the schedule", "passes over", "selects the check"):
        assert words in text, words


def test_comments_stay_true_when_values_are_edited(here: Path) -> None:
    """A number in a comment is what init found or chose, never what follows from a value of the recipe."""
    write_csv(
        here / "rows.csv",
        ["id", "message", "topic"],
        [*support_rows(300), *[[n, text(700), "billing"] for n in range(40)], [7, "", "billing"]],
    )
    write_jsonl(here / "pairs.jsonl", [{"src": text(), "trg": text()} for _ in range(60)])
    general = re.compile(r"patience: 3|\b1 (?:is faster|on a CPU)|T5")
    for path, kind in (("rows.csv", None), ("pairs.jsonl", None), ("pairs.jsonl", "text_to_text")):
        notes = draft(path, kind, []).notes
        assert {"optim.lr", "data.max_length", "data.lanes", "loop.epochs", "optim.warmup_ratio"} <= notes.keys()
        for note in (general.sub("", note) for note in notes.values()):
            number = re.search(r"\d", note)
            assert number is None or "init" in note[: number.start()], note
    assert "init found 1" in draft("rows.csv", None, []).notes["data.on_bad_row"]


def test_the_tutorial_shows_the_actual_output(here: Path) -> None:
    """Copy the recipe and the output below `rankzero init tickets` into docs/tutorials/classifier.md after a change."""
    page = {block.title or block.text.splitlines()[0]: block.text for block in blocks("tutorials/classifier.md")}
    exec(compile(page["make_tickets.py"], "make_tickets.py", "exec"), {})
    printed = init("tickets")
    assert Path("tickets.yaml").read_text(encoding="utf-8") == page["tickets.yaml"]
    assert page[printed.splitlines()[0]] in printed


# -- recipes show ------------------------------------------------------------------------------------------------------


def test_recipes_show() -> None:
    run = CliRunner()
    text = (SHIPPED / "imdb.yaml").read_text(encoding="utf-8")
    assert run.invoke(app, ["recipes", "show", "imdb"]).stdout == text.replace(f"{SHIPPED_LINE}\n", "")
    for words, message in ((["show", "imbd"], "did you mean 'imdb'"), (["shwo", "imdb"], "recipes show NAME")):
        done = run.invoke(app, ["recipes", *words])
        assert isinstance(done.exception, UsageError) and message in str(done.exception)
