"""Token classification: tagging schemes, pieces and windows, and scores compared with seqeval and nervaluate."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from entity_helpers import OTHER, PEOPLE, PLACES, recipe, sentence

from trainer.data.labels import ClassIndex
from trainer.data.roles import BadValue
from trainer.data.sources import open_split
from trainer.data.survey import survey
from trainer.data.tokenization import train_tokenizer
from trainer.errors import DataError, UsageError
from trainer.recipe.sections import DataConfig, TokenizerTraining
from trainer.recipe_loading import check_recipe
from trainer.task.base import IGNORED
from trainer.task.registry import make_task
from trainer.tasks.token_classification.decoding import joined, windows, words_of
from trainer.tasks.token_classification.errors import KINDS, paired
from trainer.tasks.token_classification.metrics import score_entities
from trainer.tasks.token_classification.report import TokenClassificationReport
from trainer.tasks.token_classification.roles import RawText, RawTokens, Spans, Tags
from trainer.tasks.token_classification.schemes import entities_of, to_bio

LABELS = {"PER": "PER", "LOC": "LOC"}
WORDS = [" ".join(PEOPLE + PLACES + OTHER) + " ."]


def task_of(kind: str = "wordpiece", **sections: Any) -> Any:
    made = recipe(Path("x"), **sections)
    tokenizer = train_tokenizer(WORDS, TokenizerTraining(kind=kind, vocab_size=300), made.data.max_length)
    return make_task(made, tokenizer)


# -- tags --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tags", "bio"),
    [
        ("O B-PER I-PER O", "O B-PER I-PER O"),
        ("S-PER B-LOC E-LOC O", "B-PER B-LOC I-LOC O"),
        ("B-PER I-PER E-PER S-PER", "B-PER I-PER I-PER B-PER"),
        ("U-PER B-LOC L-LOC", "B-PER B-LOC I-LOC"),
        ("B-PER B-PER I-PER", "B-PER B-PER I-PER"),
    ],
)
def test_tags_become_bio(tags: str, bio: str) -> None:
    assert to_bio(tags.split(), LABELS) == bio.split()
    assert to_bio(bio.split(), LABELS) == bio.split()


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ("O I-PER", "bad sequence of tags.*I-PER needs a B- or I- tag of its type before it .token 2"),
        ("B-LOC I-PER", "I-PER needs"),
        ("B-PER O S-LOC", "an entity of PER has no E- tag"),
        ("S-LOC B-PER", "ends before the E- tag of PER"),
        ("S-PER E-PER", "E-PER needs"),
        ("B-ORG", "type 'ORG', which is not in task.labels .token 1.; it lists PER, LOC"),
        ("PER", "'PER', which is no tag"),
        ("X-PER", "'X-PER', which is no tag"),
    ],
)
def test_a_bad_sequence_is_named(tags: str, words: str) -> None:
    with pytest.raises(BadValue, match=words):
        to_bio(tags.split(), LABELS)


@pytest.mark.parametrize(
    ("tags", "bio"),
    [
        ("I-PER I-PER O I-LOC", "B-PER I-PER O B-LOC"),
        ("I-PER B-PER I-PER I-LOC", "B-PER B-PER I-PER B-LOC"),
        ("O O", "O O"),
    ],
)
def test_tags_of_iob1_become_bio(tags: str, bio: str) -> None:
    """The scheme of CoNLL-2003 is read if the recipe sets it. The message of a row names the key."""
    assert to_bio(tags.split(), LABELS, iob1=True) == bio.split()
    if "PER" in tags:
        with pytest.raises(BadValue, match=r"or set task.scheme=iob1"):
            to_bio(tags.split(), LABELS)
        with pytest.raises(BadValue, match=r"S-PER .token 1. is no tag of IOB1. Set task.scheme=auto"):
            to_bio(["S-PER"], LABELS, iob1=True)
    task = task_of(task={"scheme": "iob1"})
    assert task.roles(task.settings)["tags"].convert(tags.split(), str) == bio.split()


def test_types_are_renamed_and_class_indices_have_names() -> None:
    assert to_bio(["B-person", "I-person"], {"person": "PER"}) == ["B-PER", "I-PER"]
    assert to_bio([ClassIndex(1, ("O", "B-PER")), ClassIndex(0, ("O", "B-PER"))], LABELS) == ["B-PER", "O"]
    with pytest.raises(BadValue, match=r"number in place of a tag 3 .token 1.: write tags as texts, such as B-PER"):
        to_bio([3], LABELS)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (["O", "PER"], "labels has 'O'; list the types alone"),
        (["B-PER", "I-PER"], r"list the types alone, such as \['PER'\]"),
        (["PER", "PER"], "lists 'PER' twice"),
        ([], "at least 1"),
    ],
)
def test_labels_are_types(labels: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        recipe(Path("x"), task={"labels": labels})


def test_nothing_is_pooled() -> None:
    made = recipe(Path("x"), model={"kind": "pretrained", "architecture": "bert", "size": "tiny", "pooling": "mean"})
    problems = make_task(made, train_tokenizer(WORDS, TokenizerTraining(kind="wordpiece"), 32)).problems(made)
    assert problems == ["model.pooling=mean: every token is classified, so that nothing is pooled; leave it out"]


def test_columns_are_those_of_the_roles() -> None:
    made = recipe(Path("x"), data={"columns": {"text": "sentence"}})
    [problem] = task_of().problems(made)
    assert problem == (
        "data.columns names text, but task.rows=tokens has the roles tokens, tags; "
        "set task.rows=text, or name these roles"
    )


def test_a_role_that_no_form_of_rows_has_gets_no_advice_about_the_form() -> None:
    made = recipe(Path("x"), data={"columns": {"tag": "ner_tags"}})
    assert task_of().problems(made) == []
    with pytest.raises(
        UsageError, match=r"1 problem\n  data\.columns\.tag: no role .* did you mean 'tags'\? its roles"
    ):
        check_recipe(made)


@pytest.mark.parametrize(("overlap", "stride"), [(0.25, ", stride=8"), (0.0, "")])
def test_the_card_shows_a_pipeline_that_joins_pieces_and_reads_windows(overlap: float, stride: str) -> None:
    report: Any = SimpleNamespace(recipe=recipe(Path("x"), task={"overlap": overlap}).model_dump(mode="json"))
    code = TokenClassificationReport.usage(report, "model", None)
    assert f'pipeline("token-classification", model="model", aggregation_strategy="first"{stride})' in code
    compile(code, "card", "exec")


def test_toy_rows_fit_any_types() -> None:
    task = task_of(task={"labels": ["ORG"], "rows": "text"})
    assert task.targets(task.filler()) == 0
    assert task.encode(task.toy_rows)[1]["labels"].count(0) == 3


# -- rows --------------------------------------------------------------------------------------------------------------


def surveyed(root: Path, name: str, rows: str, **data: Any) -> Any:
    made = DataConfig.model_validate({"root": str(root), "train": name, "lanes": 1, **data})
    roles: Any = (
        {"text": RawText(), "spans": Spans(LABELS)} if rows == "text" else {"tokens": RawTokens(), "tags": Tags(LABELS)}
    )
    source = open_split(made, "train", roles)
    assert source is not None
    return survey(source, made, roles), source


CONLL = "# newdoc\nAda\tNNP\tB-PER\nmet\tVBD\tO\n# \tNN\tO\n\n\nParis\tNNP\tB-LOC\n"


@pytest.mark.parametrize("delimiter", ["\t", " ", "  "])
@pytest.mark.parametrize("name", ["a.conll", "a.txt", "a.bio", "a.conll.gz"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_conll_files(tmp_path: Path, name: str, delimiter: str, end: str) -> None:
    text = "-DOCSTART- -X- O\n\n" + CONLL if delimiter == " " else CONLL
    content = text.replace("\t", delimiter).replace("\n", end).encode()
    if name.endswith(".gz"):
        import gzip

        content = gzip.compress(content)
    (tmp_path / name).write_bytes(content)
    counts, source = surveyed(tmp_path, name, "tokens")
    assert (counts.rows, counts.labels) == (2, {"PER": 1, "LOC": 1})
    rows = list(source)
    assert rows[0].values["tokens"] == ["Ada", "met", "#"]
    assert rows[0].values["1"] == ["NNP", "VBD", "NN"]
    assert list(source.stream(0, None))[1].values["tags"] == ["B-LOC"]
    first = source.stream(0)
    next(first)
    assert [row.values["tokens"] for row in source.stream(0, first.state())] == [["Paris"]], "from a byte offset"
    assert surveyed(tmp_path, name, "tokens", columns={"tokens": "0", "tags": "2"})[0].rows == 2


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("Ada B-PER\nmet\n", "wrong number of columns: 2 in 'Ada B-PER'; 2 or more are needed"),
        ("Ada B-PER\nmet O O\n", "wrong number of columns: 2 in 'Ada B-PER'; other lines of the sentence have 3"),
        ("Ada O\nmet I-PER\n", 'line [345]|lines 3 to 4.*column "tags": holds a bad sequence of tags: I-PER needs'),
    ],
)
def test_a_bad_sentence_is_named(tmp_path: Path, line: str, words: str) -> None:
    (tmp_path / "a.conll").write_text("Ada B-PER\n\n" + line)
    with pytest.raises(DataError, match=words):
        surveyed(tmp_path, "a.conll", "tokens")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"tokens": ["a", "b"], "tags": ["O"]}, r'row 2\), column "tags": is not as long as the tokens: 1 tags for 2'),
        ({"tokens": ["a", ""], "tags": ["O", "O"]}, "holds an empty token .token 2"),
        ({"tokens": [], "tags": []}, "is an empty list"),
        ({"tokens": "a b", "tags": ["O", "O"]}, "is not a list but str"),
    ],
)
def test_a_bad_row_of_tokens_is_named(tmp_path: Path, row: dict[str, Any], words: str) -> None:
    good = {"tokens": ["Ada"], "tags": ["B-PER"]}
    (tmp_path / "a.jsonl").write_text(json.dumps(good) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(DataError, match=words):
        surveyed(tmp_path, "a.jsonl", "tokens")


@pytest.mark.parametrize(
    ("spans", "words"),
    [
        ([[0, 3, "ORG"]], "type 'ORG', which is not in task.labels; it lists PER, LOC"),
        ([[0, 99, "PER"]], "span outside of its text: 0 to 99 .PER.; the text has 18 characters"),
        ([[3, 3, "PER"]], "outside of its text"),
        ([[3, 4, "PER"]], "span of white space"),
        ([[0, 7, "PER"], [4, 9, "LOC"]], r"spans that overlap: \(0, 7, 'PER'\) and \(4, 9, 'LOC'\)"),
        ([[0, 1, "PER"], [1, 3, "LOC"]], "two spans in one word"),
        ([{"begin": 0}], "something else than a span"),
        (['[0, 3, "PER"'], "something else than a span"),
        ("PER", "is not a list"),
    ],
)
def test_a_bad_span_is_named(tmp_path: Path, spans: Any, words: str) -> None:
    good = {"text": "Ada met Alan. Oh!!", "spans": [{"start": 0, "end": 3, "label": "PER"}, [8, 12, "PER"]]}
    (tmp_path / "a.jsonl").write_text(json.dumps(good) + "\n" + json.dumps({**good, "spans": spans}) + "\n")
    with pytest.raises(DataError, match=words):
        surveyed(tmp_path, "a.jsonl", "text")


def test_spans_in_parquet(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"text": "Ada met Alan.", "spans": [{"start": 0, "end": 3, "label": "PER"}]}, {"text": "No", "spans": []}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    counts, _ = surveyed(tmp_path, "a.parquet", "text")
    assert (counts.rows, counts.labels) == (2, {"PER": 1})


def test_spans_that_are_texts() -> None:
    texts = ['[4, 7, "LOC"]', '{"start": 0, "end": 3, "label": "PER"}']
    assert Spans(LABELS).convert(texts, str) == ['[0, 3, "PER"]', '[4, 7, "LOC"]']


# -- words, pieces and windows -----------------------------------------------------------------------------------------


def test_words_of_a_text() -> None:
    text = "@ada's U.S.-led, see https://a.b/c?d. <b>Don’t</b> हिन्दी 日本 e\u0301a #tag!\n"
    found = [text[start:end] for start, end in words_of(text)]
    assert found[:10] == ["@ada", "'", "s", "U", ".", "S", ".", "-", "led", ","]
    assert found[10:18] == ["see", "https://a.b/c?d", ".", "<b>", "Don", "’", "t", "</b>"]
    assert found[18:] == ["हिन्दी", "日", "本", "e\u0301a", "#tag", "!"]
    draw = random.Random(1)
    for _ in range(300):
        text = "".join(draw.choices("ab .@:/<>&;-'日é\u0301\u200d\n😀", k=30))
        covered = {i for start, end in words_of(text) for i in range(start, end)}
        assert covered == {i for i, character in enumerate(text) if not character.isspace()}, "nothing is left out"


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.9])
def test_each_piece_is_decided_in_one_window(overlap: float) -> None:
    for size in range(40):
        for room in range(1, 12):
            found = windows(size, room, overlap)
            assert [p for _, _, first, last in found for p in range(first, last)] == list(range(size))
            assert all(begin <= first <= last <= end <= begin + room for begin, end, first, last in found)


@pytest.mark.parametrize("kind", ["wordpiece", "byte_bpe", "unigram", "bpe"])
def test_first_pieces_are_those_of_word_ids(kind: str) -> None:
    """The words of the library, where a piece belongs to one word."""
    from transformers import PreTrainedTokenizerFast

    task, draw = task_of(kind), random.Random(2)
    tokenizer: PreTrainedTokenizerFast = task.tokenizer
    for _ in range(30):
        row = sentence(draw)
        text, words = joined(row["tokens"])
        encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids = tokenizer(row["tokens"], is_split_into_words=True, add_special_tokens=False).word_ids()
        example = task.encode([{"tokens": row["tokens"], "tags": row["ner_tags"]}])[0]
        assert example["input_ids"] == encoding["input_ids"]
        assert [text[a:b] for a, b in zip(example["starts"], example["ends"], strict=True)] == row["tokens"]
        if kind != "byte_bpe":  # there, words within a text begin with a space
            assert example["heads"] == [ids.index(i) for i in range(len(words))]
        labels = [example["labels"][head] for head in example["heads"]]
        assert [task.settings.names[label] for label in labels] == row["ner_tags"]
        assert sum(label != IGNORED for label in example["labels"]) == len(words)


def test_all_pieces_have_a_label_if_asked() -> None:
    task = task_of(task={"align": "all"})
    row = {"tokens": ["Lovelaceold", "trainLondon"], "tags": ["B-PER", "O"]}
    example = task.encode([row])[0]
    second = example["heads"][1]
    assert second > 1
    assert example["labels"] == [1, *[2] * (second - 1), *[0] * (len(example["labels"]) - second)]


def test_cleaning_keeps_the_offsets_of_the_given_text() -> None:
    task = task_of(
        data={"cleaning": ["unescape_html", "strip_tags", "normalize_unicode", "fold_whitespace", "lowercase"]}
    )
    text = "  <b>Ada</b>\u00a0 met\tCle\u0301ment &amp; Alan  "
    example = task.encode([task.cleaned_row(text)])[0]
    words = [text[a:b] for a, b in zip(example["starts"], example["ends"], strict=True)]
    assert words == ["<b>", "Ada", "</b>", "met", "Cle\u0301ment", "&amp;", "Alan"]
    assert [head < 0 for head in example["heads"]] == [True, False, True, False, False, False, False]
    assert task.tokenizer.decode(example["input_ids"]).startswith("ada met")


class Fixed(torch.nn.Module):
    """Logits that depend on the token alone: the names of the corpus are found, wherever they are."""

    def __init__(self, task: Any) -> None:
        super().__init__()
        self.table = torch.zeros(len(task.tokenizer), len(task.settings.names))
        first = {task.token_ids([{"tokens": [name.split()[0]]}])["tokens"][0][0]: 1 for name in PEOPLE}
        for token, tag in first.items():
            self.table[token, tag] = 5.0

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.table[input_ids]


def test_long_texts_are_read_in_windows() -> None:
    """All names are found with their offsets, the same as with one window, and each label counts once."""
    task, draw = task_of(), random.Random(5)
    rows = [sentence(draw, longest) for longest in (1, 30, 2, 60)]
    named = [{"tokens": row["tokens"], "tags": row["ner_tags"]} for row in rows]
    examples = task.encode(named)
    batch = task.collate(examples)
    assert len(batch["input_ids"]) > len(rows)
    assert batch["input_ids"].shape[1] <= task.recipe.data.max_length
    wide = task_of(data={"max_length": 1024, "tokens_per_batch": 1024})
    found = task.assess(Fixed(task), batch, predict=True)
    whole = wide.assess(Fixed(wide), wide.collate(wide.encode(named)), predict=True)
    assert found.records == whole.records
    assert found.counts.tolist() == whole.counts.tolist() == [len(row["tokens"]) for row in rows]
    torch.testing.assert_close(found.losses, whole.losses)
    assert any(entity["start"] > 200 for entity in found.records[3]["entities"])
    packed = task.pack(examples)
    assert [number for _, begun in packed for number in begun] == [0, 1, 2, 3]
    assert task.targets(task.collate([window for window, _ in packed])) == sum(
        map(len, (row["tokens"] for row in rows))
    )


# -- scores ------------------------------------------------------------------------------------------------------------


def random_tags(draw: random.Random, size: int) -> list[str]:
    names = ["O", "O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    return to_bio([_fixed(tags, i) for tags in [draw.choices(names, k=size)] for i in range(size)], LABELS)


def _fixed(tags: list[str], i: int) -> str:
    """An I- tag that does not continue an entity begins one."""
    tag = tags[i]
    return "B" + tag[1:] if tag[0] == "I" and (i == 0 or tags[i - 1][2:] != tag[2:]) else tag


def records_of(true: list[list[str]], predicted: list[list[str]]) -> list[dict[str, Any]]:
    def entities(tags: list[str]) -> list[dict[str, Any]]:
        return [{"start": 2 * a, "end": 2 * b - 1, "label": name} for a, b, name in entities_of(tags)]

    return [
        {"id": f"x:{i}", "target": entities(a), "prediction": entities(b), "loss": 1.0, "tokens": len(a)}
        for i, (a, b) in enumerate(zip(true, predicted, strict=True))
    ]


def test_scores_are_those_of_seqeval() -> None:
    from seqeval.metrics import classification_report, f1_score, precision_score, recall_score  # type: ignore[import-untyped]

    draw = random.Random(7)
    true = [random_tags(draw, draw.randint(1, 12)) for _ in range(200)]
    predicted = [[t if draw.random() < 0.8 else "O" for t in tags] for tags in true]
    predicted = [[_fixed(tags, i) for i in range(len(tags))] for tags in predicted]
    scores = score_entities(records_of(true, predicted), ["PER", "LOC"], resamples=50)
    theirs = {"f1": f1_score, "precision": precision_score, "recall": recall_score}
    for name, score in theirs.items():
        assert scores[name] == pytest.approx(score(true, predicted))
        low, high = scores[f"{name}_ci95"]
        assert low < scores[name] < high
    report: Any = classification_report(true, predicted, output_dict=True)
    for label in ("PER", "LOC"):
        assert scores["f1_by_type"][label] == pytest.approx(report[label]["f1-score"])
        assert scores["precision_by_type"][label] == pytest.approx(report[label]["precision"])
        assert scores["entities_by_type"][label] == report[label]["support"]
    assert scores["macro_f1"] == pytest.approx(report["macro avg"]["f1-score"])


def test_error_kinds_are_those_of_nervaluate() -> None:
    """Rows with one true entity, where both say the same: nervaluate may pair an entity twice."""
    from nervaluate import Evaluator  # type: ignore[import-untyped]

    draw, kinds = random.Random(9), dict.fromkeys([*KINDS, "right"], 0)
    true, predicted = [], []
    for _ in range(300):
        rows = []
        for _ in range(2):
            start, size, label = draw.randrange(6), draw.randint(1, 3), draw.choice(["PER", "LOC"])
            empty = draw.random() < 0.2
            tags = ["O"] * 9
            if not empty:
                tags[start : start + size] = [f"B-{label}", *[f"I-{label}"] * (size - 1)]
            rows.append(tags)
        true.append(rows[0])
        predicted.append(rows[1])
    for record in records_of(true, predicted):
        for pair in paired(record["target"], record["prediction"]):
            kinds[pair.kind] += 1
    found: Any = Evaluator(true, predicted, tags=["PER", "LOC"], loader="list").evaluate()
    strict, by_type, exact = (found["overall"][name] for name in ("strict", "ent_type", "exact"))
    assert min(kinds.values()) > 5
    assert kinds["right"] == strict.correct
    assert (kinds["missed"], kinds["spurious"]) == (strict.missed, strict.spurious)
    assert kinds["boundary"] == by_type.correct - strict.correct
    assert kinds["type"] == by_type.incorrect
    assert exact.correct >= strict.correct
