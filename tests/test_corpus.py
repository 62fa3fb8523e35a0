"""The corpus of a recipe: real files through cleaning, held-out share and task, as lanes and as evaluation batches."""

from __future__ import annotations

import gzip
import itertools
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from trainer.data.discovery import Shard
from trainer.data.lane_plan import LanePlan
from trainer.data.lanes import RowId
from trainer.data.loader import Loaded, load_epoch
from trainer.data.prepare import prepare, prepared_tokenizer
from trainer.data.sources import Source
from trainer.data.tokenization import train_tokenizer
from trainer.data_parallel import DataParallel
from trainer.engine.corpus import Corpus, deals_whole_shards
from trainer.engine.progress import Progress
from trainer.errors import DataError
from trainer.models.configs import TransformerConfig
from trainer.recipe import Recipe, recipe_class
from trainer.recipe.sections import TokenizerTraining
from trainer.tasks.translation.task import Translation, TranslationConfig

RECIPE = recipe_class([TranslationConfig], [TransformerConfig])
WORDS = ["ein", "Hund", "Katze", "Mann", "Frau", "läuft", "schläft", "sieht", "schnell", "Haus", "Park", "rot", "im"]
Ids = dict[int, list[RowId]]


def pairs(rows: int, seed: int = 0) -> list[dict[str, Any]]:
    """Pairs of 1 to 12 words; each one occurs once; in JSON all are about as long, so that their files are."""
    draw = random.Random(seed)
    texts = [" ".join(draw.choices(WORDS, k=draw.randint(1, 12))) for _ in range(rows)]
    return [
        {"src": f"{text} {i}", "trg": f"{i} {text.upper()}", "note": "-" * (200 - 2 * len(text))}
        for i, text in enumerate(texts)
    ]


def write(root: Path, rows: Sequence[Any], shards: int) -> None:
    """Rows as jsonl files, the first rows in the first file; a string stands in its file as it is."""
    each = -(-len(rows) // shards)
    for shard in range(shards):
        lines = [r if isinstance(r, str) else json.dumps(r, ensure_ascii=False) for r in rows[shard * each :][:each]]
        (root / f"train-{shard}.jsonl").write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def recipe(root: Path, **data: Any) -> Recipe:
    section = {"root": str(root), "train": "train-*.jsonl", "lanes": 4, "tokens_per_batch": 128, "max_length": 24}
    values = {
        "name": "test",
        "task": {"kind": "translation"},
        "data": {**section, "pad_multiple": 4, **data},
        "tokenizer": {"train": {"vocab_size": 120}},
        "model": {"d_model": 8, "heads": 1},
        "loop": {"epochs": 2},
        "evaluation": {"tokens_per_batch": 128},
    }
    return RECIPE.parse(values)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    texts = [text for row in pairs(100) for text in (row["src"], row["trg"])]
    return train_tokenizer(texts, TokenizerTraining(vocab_size=120), 24)


def corpus(recipe: Recipe, tokenizer: Any) -> Corpus:
    return Corpus(recipe, Translation(recipe, tokenizer))


def train(
    found: Corpus, ranks: int, state: Any, *, workers: int = 0, fuse: int = 1, steps: int | None = None
) -> tuple[list[Ids], Any, list[Loaded]]:
    """Steps of all ranks from a state as a checkpoint holds it, at most `steps`; the state afterwards."""
    data, task = found.recipe.data, found.task
    progress = Progress.from_json(json.loads(json.dumps(state)))
    groups = [DataParallel(rank, ranks).lane_groups(data.lanes, fuse) for rank in range(ranks)]
    done: list[Ids] = []
    seen: list[Loaded] = []
    while progress.epoch < 2:
        streams = [
            load_epoch(
                found.lanes(), task.collate, task.tokens, own, progress.marks,
                inputs=task.inputs, workers=workers, prefetch=2, pin_memory=False,
            )
            for own in groups
        ]  # fmt: skip
        for batches in itertools.zip_longest(*streams, fillvalue=[]):
            here = [loaded for part in batches for loaded in part if loaded]
            done.append({lane: ids for loaded in here for lane, ids in loaded.ids.items()})
            seen += here
            for loaded in here:
                progress.marks.update(loaded.lanes)
            if len(done) == steps:
                return done, progress.to_json(progress.marks), seen
        progress.next_epoch()
    return done, progress.to_json(progress.marks), seen


def start_state(found: Corpus) -> Any:
    progress = Progress.start(found.recipe.data.lanes)
    return progress.to_json(progress.marks)


def ids_of(steps: Sequence[Ids]) -> list[RowId]:
    return sorted(i for step in steps for ids in step.values() for i in ids)


# -- lanes over files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shards", "whole"), [(3, False), (8, True)], ids=["rows-dealt", "whole-shards"])
@pytest.mark.parametrize("block_rows", [20, 16_384])
def test_steps_over_files_are_the_same_after_two_resumes(
    tmp_path: Path, tokenizer: Any, shards: int, whole: bool, block_rows: int
) -> None:
    rows = pairs(304)
    write(tmp_path, rows, shards)
    found = corpus(recipe(tmp_path, block_rows=block_rows), tokenizer)
    server = found.lanes()
    assert server._whole_shards == whole
    expected, _, batches = train(found, 1, start_state(found))
    every = [row.id for row in found.train]
    assert len(every) == 304
    assert ids_of(expected) == sorted(every * 2)
    for loaded in batches:
        assert loaded.inputs["src"].shape[0] == loaded.inputs["trg_in"].shape[0] == loaded.rows
        widths = [loaded.inputs[name].shape[1] for name in ("src", "trg_in", "labels")]
        assert all(width % 4 == 0 for width in widths)
        assert max(widths) * loaded.rows <= 128

    state, parts = start_state(found), []
    ends = [5, len(expected) // 2 + 3, len(expected) // 2 + 4, None]
    places = [(1, 0, 1), (2, 0, 2), (4, 0, 1), (3, 0, 2)]
    for begin, end, (ranks, workers, fuse) in zip([0, *ends], ends, places, strict=False):
        left = None if end is None else end - begin
        part, state, _ = train(found, ranks, state, workers=workers, fuse=fuse, steps=left)
        parts += part
    assert parts == expected


def test_steps_over_files_are_the_same_with_loader_processes(tmp_path: Path, tokenizer: Any) -> None:
    write(tmp_path, pairs(304), 3)
    found = corpus(recipe(tmp_path, block_rows=30), tokenizer)
    expected, _, batches = train(found, 1, start_state(found))
    first, state, _ = train(found, 1, start_state(found), workers=2, steps=len(expected) // 3)
    rest, _, last = train(found, 2, state, workers=2)
    assert first + rest == expected
    assert {k: v.tolist() for k, v in last[-1].inputs.items()} == {k: v.tolist() for k, v in batches[-1].inputs.items()}


def test_compressed_and_parallel_text_files_resume_too(tmp_path: Path, tokenizer: Any) -> None:
    for role in ("src", "trg"):
        with gzip.open(tmp_path / f"train.{role}.gz", "wt", encoding="utf-8") as file:
            file.writelines(row[role] + "\n" for row in pairs(120))
    patterns = {"src": "train.src.gz", "trg": "train.trg.gz"}
    found = corpus(recipe(tmp_path, train=patterns, block_rows=12), tokenizer)
    expected, _, _ = train(found, 1, start_state(found))
    first, state, _ = train(found, 1, start_state(found), steps=len(expected) // 3)
    rest, _, _ = train(found, 2, state)
    assert ids_of(expected) == sorted([(0, row) for row in range(120)] * 2)
    assert first + rest == expected


def shards_of(*sizes: int | None, format: str = "jsonl") -> Source:
    return Source([Shard(f"{i}.jsonl", ("",), (), format, size) for i, size in enumerate(sizes)])


@pytest.mark.parametrize(
    ("sizes", "lanes", "whole"),
    [
        ([100] * 4, 4, True),
        ([100] * 8, 4, True),
        ([100] * 3, 4, False),  # fewer than lanes
        ([100] * 5, 4, False),  # one lane would get twice as much
        ([100] * 41, 4, True),  # 11 or 10 shards each
        ([100, 100, 100, 140], 4, False),
        ([100, 100, 100, 105], 4, True),
        ([0, 0, 0, 0], 4, False),
        ([100, 100, 0, 0], 2, False),  # which of them a lane gets changes every epoch
        ([None] * 8, 4, True),
        ([None] * 9, 4, False),
    ],
)
def test_whole_shards_are_dealt_when_lanes_get_equal_shares(sizes: list[int | None], lanes: int, whole: bool) -> None:
    plan = LanePlan(1, lanes, 100, 100, None)
    assert deals_whole_shards(shards_of(*sizes), plan) == whole


def test_prepared_shards_of_any_size_are_dealt_whole() -> None:
    prepared = shards_of(100, 180, 40, 90, format="prepared")
    assert deals_whole_shards(prepared, LanePlan(1, 2, 100, 100, None))
    assert not deals_whole_shards(prepared, LanePlan(1, 3, 100, 100, None))


# -- rows that are left out ------------------------------------------------------------------------------------------


def test_bad_rows_are_skipped_at_the_same_place_on_any_ranks(tmp_path: Path, tokenizer: Any) -> None:
    rows: list[Any] = list(pairs(200))
    bad = {0: "no json", 17: {"src": "ein"}, 60: {"src": None, "trg": "x"}, 61: {"src": " ", "trg": "x"}, 199: "[]"}
    for at, row in bad.items():
        rows[at] = row
    write(tmp_path, rows, 3)
    found = corpus(recipe(tmp_path, on_bad_row="skip", block_rows=25), tokenizer)
    expected, _, _ = train(found, 1, start_state(found))
    every = [row.id for row in found.train]
    assert ids_of(expected) == sorted([i for at, i in enumerate(every) if at not in bad] * 2)
    first, state, _ = train(found, 2, start_state(found), steps=7)
    rest, _, _ = train(found, 4, state, fuse=1)
    assert first + rest == expected


def test_a_bad_row_fails_with_its_file_row_and_column(tmp_path: Path, tokenizer: Any) -> None:
    rows = pairs(50)
    rows[30] = {"src": "ein Hund", "trg": None}
    write(tmp_path, rows, 2)
    found = corpus(recipe(tmp_path), tokenizer)
    for reads in (
        lambda: train(found, 1, start_state(found)),
        lambda: train(found, 1, start_state(found), workers=2),
        lambda: list(found.texts("train")),
    ):
        assert message_of(reads) == 'train-1.jsonl:5 (row 6), column "trg": is null'


def message_of(reads: Callable[[], Any]) -> str:
    """Of the DataError; its frames are let go, they would keep loader processes alive."""
    try:
        reads()
    except DataError as error:
        return str(error)
    raise AssertionError("no error came")


def test_a_held_out_share_and_the_rest_are_the_corpus(tmp_path: Path, tokenizer: Any) -> None:
    write(tmp_path, pairs(400), 3)
    found = corpus(recipe(tmp_path, validation=0.2), tokenizer)
    every = {found.train.name_of(row.id) for row in found.train}
    trained = {name for name, _ in found.texts("train")}
    held = {name for name, _ in found.texts("validation")}
    assert trained | held == every
    assert not trained & held
    assert 0.12 < len(held) / len(every) < 0.28
    steps, _, _ = train(found, 2, start_state(found))
    assert sorted(map(found.train.name_of, ids_of(steps))) == sorted([*trained, *trained])
    evaluated = [name for window in found.batches("validation") for batch in window for name in batch.ids]
    assert sorted(evaluated) == sorted(held)


def test_equal_rows_are_on_the_same_side(tmp_path: Path, tokenizer: Any) -> None:
    write(tmp_path, pairs(60) * 3, 4)
    found = corpus(recipe(tmp_path, validation=0.3), tokenizer)
    trained = {texts["src"] for _, texts in found.texts("train")}
    assert not trained & {texts["src"] for _, texts in found.texts("validation")}


def test_without_a_split_the_recipe_is_blamed(tmp_path: Path, tokenizer: Any) -> None:
    write(tmp_path, pairs(10), 1)
    with pytest.raises(DataError, match=r"no data\.validation; set it"):
        list(corpus(recipe(tmp_path), tokenizer).batches("validation"))


# -- a prepared corpus -------------------------------------------------------------------------------------------------


def test_a_prepared_corpus_gives_its_rows_without_encoding_them_again(tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "raw").mkdir()
    write(tmp_path / "raw", pairs(200), 3)
    plain = recipe(tmp_path / "raw", validation=0.2)
    prepare(plain, Translation.roles(plain.task), lambda made: Translation(plain, made).encode, tmp_path / "ready")
    ready = recipe(tmp_path / "ready", validation=0.2)
    made = prepared_tokenizer(ready)
    found = corpus(ready, made)
    server = found.lanes()
    assert server._whole_shards, "one shard for each lane"
    encoded = {name: found.task.encode([texts])[0] for name, texts in found.texts("train")}
    original = {texts["src"] for _, texts in corpus(plain, made).texts("train")}
    assert {texts["src"] for _, texts in found.texts("train")} == original
    assert not original & {texts["src"] for _, texts in found.texts("validation")}

    found.task.encode = lambda rows: [] if not rows else pytest.fail("encoded again")  # type: ignore[method-assign]
    steps, _, batches = train(found, 2, start_state(found))
    assert sorted(map(found.train.name_of, ids_of(steps))) == sorted([*encoded] * 2)
    ids = [found.train.name_of(i) for own in batches[0].ids.values() for i in own]
    assert batches[0].inputs["src"].tolist() == found.task.collate([encoded[i] for i in ids])["src"].tolist()


# -- evaluation batches ------------------------------------------------------------------------------------------------


def test_evaluation_batches_hold_each_row_once_by_length(tmp_path: Path, tokenizer: Any) -> None:
    write(tmp_path, pairs(150), 2)
    found = corpus(recipe(tmp_path, test="train-*.jsonl"), tokenizer)
    batches = [batch for window in found.batches("test") for batch in window]
    names = [name for batch in batches for name in batch.ids]
    assert sorted(names) == sorted(found.train.name_of(row.id) for row in found.train)
    lengths = [[found.task.length(e) for e in batch.examples] for batch in batches]
    flat = list(itertools.chain(*lengths))
    assert flat == sorted(flat)
    assert all(-(-max(part) // 4) * 4 * len(part) <= 128 for part in lengths)
    texts = dict(found.texts("test"))
    assert all(texts[name] == t for batch in batches for name, t in zip(batch.ids, batch.texts, strict=True))
    encoded = {name: e for batch in batches for name, e in zip(batch.ids, batch.examples, strict=True)}
    assert encoded[names[0]] == found.task.encode([texts[names[0]]])[0]


def test_max_rows_are_a_sample_of_the_split_and_not_its_first_rows(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, pairs(150), 2)
    every = [name for name, _ in corpus(recipe(tmp_path), tokenizer).texts("train")]

    def evaluated(most: int) -> list[str]:
        settings = recipe(tmp_path, test="train-*.jsonl")
        limited = settings.model_copy(update={"evaluation": settings.evaluation.model_copy(update={"max_rows": most})})
        found = corpus(limited, tokenizer)
        names = [[n for window in found.batches("test") for batch in window for n in batch.ids] for _ in range(2)]
        assert names[0] == names[1]
        return sorted(names[0], key=every.index)

    some = evaluated(40)
    assert len(some) == 40 and 10 <= len([name for name in some if name in every[:75]]) <= 30, "of both files"
    assert set(some) < set(evaluated(41)), "more rows are the same and others"
    assert evaluated(150) == evaluated(200) == every
    monkeypatch.setattr("trainer.engine.corpus.SAMPLED_FROM", 60)
    assert set(evaluated(40)) < set(every[:60]) and evaluated(70) == every[:70]


def test_evaluation_stops_at_max_rows_and_holds_a_window(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.engine.corpus.EVAL_WINDOW", 40)
    write(tmp_path, pairs(150), 2)
    settings = recipe(tmp_path, test="train-*.jsonl")
    limited = settings.model_copy(update={"evaluation": settings.evaluation.model_copy(update={"max_rows": 90})})
    windows = [
        [name for batch in window for name in batch.ids] for window in corpus(limited, tokenizer).batches("test")
    ]
    assert [len(window) for window in windows] == [40, 40, 10]
    order = [name for name, _ in corpus(limited, tokenizer).texts("test")]
    taken = [name for window in windows for name in sorted(window, key=order.index)]
    assert taken == sorted(taken, key=order.index), "windows follow the order of the files"
