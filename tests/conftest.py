"""A tiny corpus and recipe that train in a second, for every test that needs a real run."""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

# Before torch is imported anywhere: one thread, so that sums have one order and tests side by side do not wait for each
# other; the module path reaches the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["RANKZERO_CACHE_GB"] = "0"  # the tests of the block cache have their own
_HERE = Path(__file__).parent
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, (str(_HERE.parent), str(_HERE), os.environ.get("PYTHONPATH", "")))
)

from trainer.data.remote import forget  # noqa: E402
from trainer.rank_env import RANK_VARIABLES  # noqa: E402

POISONED = 123  # the row of train.jsonl whose loss is NaN

NOUNS = ["Hund:dog", "Katze:cat", "Kind:child", "Mann:man", "Frau:woman", "Vogel:bird", "Baum:tree", "Boot:boat"]
VERBS = ["sieht:sees", "sucht:seeks", "malt:paints", "trägt:carries", "zeigt:shows", "wirft:throws"]
WORDS = ["rot:red", "klein:small", "alt:old", "müde:tired", "jung:young", "froh:glad"]
ENDS = ["im_Park:in_the_park", "am_Fluss:at_the_river", "heute:today", "vor_dem_Haus:before_the_house", "oft:often"]


def sentence_pair(draw: random.Random) -> dict[str, str]:
    """A sentence of 5 to 25 words, translated word by word."""
    parts: list[str] = []
    for _ in range(draw.choice([1, 1, 2, 3])):
        parts += ["und:and"] if parts else []
        parts += ["der:the", *draw.sample(WORDS, draw.randrange(3)), draw.choice(NOUNS), draw.choice(VERBS)]
        parts += ["ein:a", draw.choice(NOUNS), draw.choice(ENDS)]
    sides = zip(*(part.replace("_", " ").split(":") for part in parts), strict=True)
    return dict(zip(("de", "en"), (f"{' '.join(side)}." for side in sides), strict=True))


def write_rows(path: Path, rows: int, seed: int = 0) -> Path:
    """`rows` German-English pairs as JSON lines."""
    draw = random.Random(f"{path.stem} {seed}")
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(sentence_pair(draw), ensure_ascii=False) + "\n" for _ in range(rows))
    path.write_text("".join(lines), encoding="utf-8")
    return path


def write_corpus(folder: Path, train: int = 200, validation: int = 12, test: int = 12) -> Path:
    """train.jsonl, validation.jsonl and test.jsonl below `folder`."""
    for name, rows in (("train", train), ("validation", validation), ("test", test)):
        write_rows(folder / f"{name}.jsonl", rows)
    return folder


def tiny_recipe(root: Path, **sections: dict[str, Any]) -> dict[str, Any]:
    """A recipe whose epoch is about 7 steps of 4 lanes, evaluated and saved every few steps; sections are merged in."""
    recipe: dict[str, Any] = {
        "version": 1,
        "name": "tiny",
        "task": {"kind": "translation"},
        "data": {
            "root": str(root),
            "train": "train.jsonl",
            "validation": "validation.jsonl",
            "test": "test.jsonl",
            "columns": {"src": "de", "trg": "en"},
            "lanes": 4,
            "tokens_per_batch": 160,
            "max_length": 40,
            "pad_multiple": 4,
        },
        "tokenizer": {"train": {"kind": "bpe", "vocab_size": 200}},
        "model": {
            "kind": "transformer",
            "d_model": 32,
            "encoder_layers": 1,
            "decoder_layers": 1,
            "heads": 2,
            "feed_forward": 64,
            "dropout": 0.1,
        },
        "optim": {"name": "adamw", "lr": 2e-3, "schedule": "constant", "label_smoothing": 0.1},
        "loop": {"max_steps": 12, "eval_every": 4, "save_every": 3, "log_every": 1, "ledger": True},
        "evaluation": {"beam_size": 2, "bootstrap": 10, "max_length_factor": 0.5},
        "export": {"model": False, "onnx": False, "int8": False},
    }
    for name, values in sections.items():
        recipe[name] = {**recipe.get(name, {}), **values}
    return recipe


def write_recipe(path: Path, root: Path, **sections: dict[str, Any]) -> Path:
    """`tiny_recipe` as a YAML file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(tiny_recipe(root, **sections), sort_keys=False), encoding="utf-8")
    return path


def part(text: str) -> tuple[int, int]:
    """Return K and N of --part=K/N."""
    first, _, parts = text.partition("/")
    if not (first.isdigit() and parts.isdigit() and 1 <= int(first) <= int(parts)):
        raise argparse.ArgumentTypeError(f"{text}: expected K/N with 1 <= K <= N, for example 1/3")
    return int(first), int(parts)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--part", type=part, metavar="K/N", help="run every Nth of the selected tests, beginning with the Kth"
    )


@pytest.hookimpl(trylast=True)  # after pytest has left out what -m and -k do not select
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests of --part, and let the processes of pytest-xdist begin with the longest files.

    So both processes end at about one time. The longest are the jobs of a real cluster, which mostly wait, and files
    that start many ranks. A test with its own time limit starts about twenty.
    """
    if config.option.part:
        first, parts = config.option.part
        config.hook.pytest_deselected(items=[item for i, item in enumerate(items) if i % parts != first - 1])
        items[:] = items[first - 1 :: parts]
    if hasattr(config, "workerinput"):
        starts: Counter[Path] = Counter()
        for item in items:
            if item.get_closest_marker("ranks"):
                starts[item.path] += 20 if item.get_closest_marker("timeout") else 1
        items.sort(key=lambda item: (item.get_closest_marker("slurm") is None, -starts[item.path]))


@pytest.fixture(autouse=True)
def environment_as_before() -> Iterator[None]:
    """What a test leaves in the environment of ranks and jobs would change what later tests start."""
    before = dict(os.environ)
    forget()  # another test's files may have the same URL
    yield
    changed = {name for name in before.keys() | os.environ.keys() if before.get(name) != os.environ.get(name)}
    prefixes = ("ACCELERATE_", "FSDP_", "RANKZERO_", "SLURM_")
    ours = {name for name in changed if name in RANK_VARIABLES or name.startswith(prefixes)}
    assert not ours, f"the test has left {sorted(ours)} in os.environ"


@pytest.fixture(autouse=True)
def logger_as_at_the_start() -> None:
    """A command that ran in this process has set up rankzero's logger for stderr alone."""
    logger = logging.getLogger("rankzero")
    logger.handlers, logger.propagate = [], True
    logger.setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 200 training rows; 12 and 100 rows to evaluate. Read only."""
    return write_corpus(tmp_path_factory.mktemp("corpus"), test=100)


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    """The tiny recipe on that corpus, evaluated on at most 8 rows. Read only: change it by overrides."""
    return write_recipe(tmp_path_factory.mktemp("recipe") / "tiny.yaml", corpus, evaluation={"max_rows": 8})


@pytest.fixture(scope="session")
def poisoned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe on a corpus in which one row has a word of its own, which `hooks.poison` makes NaN of. Read only."""
    folder = tmp_path_factory.mktemp("poisoned")
    made = write_corpus(folder / "corpus")
    lines = (made / "train.jsonl").read_text(encoding="utf-8").splitlines()
    row = json.loads(lines[POISONED])
    lines[POISONED] = json.dumps({**row, "de": row["de"] + " %"})
    (made / "train.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return write_recipe(folder / "tiny.yaml", made, data={"validation": None})


@pytest.fixture(scope="session")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 160 training reviews, sorted by label, and 40 to test on. Read only."""
    from review_helpers import write_reviews

    return write_reviews(tmp_path_factory.mktemp("reviews"))


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pretrained BERT: a folder as the Hub has them. Read only."""
    from review_helpers import write_bert

    return write_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory, reviews: Path) -> Any:
    """An own encoder's finished run, exported. Read only, as those that follow."""
    from export_helpers import encoder_run, exported

    return exported(encoder_run(tmp_path_factory.mktemp("encoder"), reviews))


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory, bert: Path) -> Any:
    """A pretrained BERT's on pairs of texts."""
    from export_helpers import exported, pair_run

    return exported(pair_run(tmp_path_factory.mktemp("pairs"), bert))


@pytest.fixture(scope="session")
def translator(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Any:
    """An encoder-decoder's."""
    from export_helpers import exported, translation_run

    return exported(translation_run(tmp_path_factory.mktemp("translator"), corpus))


@pytest.fixture
def near(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gates run the artifact in this process: a fresh one takes a second, and others test that."""
    from export_helpers import load

    from trainer.export import gates

    monkeypatch.setattr(gates, "in_fresh_process", lambda folder, lines, **_: (list(load(folder)(lines)), 0.0))


@pytest.fixture
def tiny_job(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Makes a job of the tiny recipe, submitted from the folder `here`; nothing is submitted."""
    from launch.slurm.job import Job, make_job

    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def job(*overrides: str, config: str | None = "debug", run: Path | None = None, **resources: Any) -> Job:
        return make_job(str(recipe), overrides, resources, config, run or tmp_path / "run")

    return job
