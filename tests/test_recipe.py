"""A recipe is checked completely, all errors are reported at once, and YAML scalars are read as intended."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import tiny_recipe, write_recipe

from trainer.errors import UsageError
from trainer.recipe import FREE_TO_CHANGE, changed_keys, synonyms
from trainer.recipe import Recipe as BaseRecipe
from trainer.recipe.patterns import in_words
from trainer.recipe_loading import SHIPPED, Recipe, check_recipe, find_recipe, load_recipe
from trainer.task.registry import task_class

ROOT = Path("corpus")


def parse(*overrides: str, **sections: Any) -> BaseRecipe:
    return Recipe.parse(tiny_recipe(ROOT, **sections), overrides)


def from_text(tmp_path: Path, text: str) -> BaseRecipe:
    path = tmp_path / "x.yaml"
    path.write_text(text, encoding="utf-8")
    return Recipe.load(path)


def recipe_error(*overrides: str, **sections: Any) -> str:
    with pytest.raises(UsageError) as caught:
        parse(*overrides, **sections)
    assert caught.value.exit_code == 2
    return str(caught.value)


# -- shipped recipes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_is_one(path: Path) -> None:
    recipe = load_recipe(path.stem)
    assert recipe.name == path.stem
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# "), "the first line says what it is, for `rankzero recipes`"
    assert len(first) <= 100
    assert Recipe.parse(yaml.safe_load(recipe.to_yaml())) == recipe, "recipe.yaml of a run reads back as the same"
    metric = recipe.loop.early_stopping.metric
    assert metric in task_class(recipe).metrics


def test_there_are_the_promised_recipes() -> None:
    promised = {"demo-translation", "multi30k", "multi30k-classic", "imdb-longformer", "imdb-bigbird", "imdb-reformer"}
    assert {path.stem for path in SHIPPED.glob("*.yaml")} >= promised


def test_the_classic_has_the_tutorials_numbers() -> None:
    recipe = load_recipe("multi30k-classic")
    model: Any = recipe.model
    sizes = (model.d_model, model.encoder_layers, model.decoder_layers, model.heads, model.feed_forward, model.dropout)
    assert sizes == (512, 6, 6, 8, 4 * 512, 0.1)
    assert (recipe.data.max_length, recipe.optim.lr, recipe.optim.clip_norm) == (100, 5e-4, 1.0)


@pytest.mark.parametrize(
    ("name", "words"),
    [("multi30", "did you mean 'multi30k'"), ("demo-translatoin", "demo-translation"), ("qqqq", "demo-translation")],
)
def test_an_unknown_name_gives_the_nearest_or_all(name: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        find_recipe(name)
    assert repr(name) in str(caught.value)
    assert ".yaml" in str(caught.value), "how to give another one"


def test_a_path_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "some").mkdir()
    for name in ("mine.yaml", "some/where"):
        Path(name).touch()
        assert find_recipe(name) == Path(name)
    for name, words in (
        ("mien.yaml", "recipe mien.yaml does not exist; did you mean mine.yaml?"),
        ("some/imbd.yml", "did you mean imdb? `rankzero recipes` lists"),
        ("some/qqqq", "check the path"),
    ):
        with pytest.raises(UsageError) as caught:
            find_recipe(name)
        assert words in str(caught.value)


# -- what is wrong -----------------------------------------------------------------------------------------------------


def test_the_tiny_recipe_is_one() -> None:
    recipe = parse()
    assert recipe.name == "tiny"
    assert recipe.seed == 1, "a default"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optim.learning=1", "optim.learning: unknown key"),
        ("optim.lrr=1", "optim.lrr: unknown key; did you mean 'lr'"),
        ("optim.averaging.kimd=ema", "optim.averaging.kimd: unknown key; did you mean 'kind'"),
        ("model.layers=2", "model.layers: unknown key; kind encoder or transformer_xl has it, keys here: activation"),
        ("model.filters=2", "model.filters: unknown key; kind cnn has it, keys here: activation"),
        ("task.labels=[a]", "task.labels: unknown key; kind classification or token_classification has it, keys here"),
        ("model.d_modle=32", "model.d_modle: unknown key; did you mean 'd_model'"),
        ("task.src_lang=de", "task.src_lang: unknown key; did you mean 'src_language'"),
        ("dta.lanes=2", "dta: unknown key; did you mean 'data'"),
        ("zzz=1", "known keys here: data, evaluation"),
        # what Trainer, Lightning, JoeyNMT and fairseq call it
        ("loop.accumulation=4", "loop.accumulation: unknown key; use data.lanes"),
        ("gradient_accumulation_steps=4", "use data.lanes"),
        ("loop.accumulate_grad_batches=4", "use data.lanes"),
        ("optim.no_decay=[bias]", "optim.no_decay: unknown key; nothing to set: biases and norms"),
        ("data.batch_size=8", "use data.rows_per_batch"),
        ("optim.learning_rate=1", "use optim.lr"),
        ("optim.max_grad_norm=1", "use optim.clip_norm"),
        ("loop.num_train_epochs=3", "use loop.epochs"),
        ("loop.fp16=true", "use --config NAME"),
        ("loop.output_dir=x", "use --run DIR"),
        # a key of another section
        ("max_length=64", "use data.max_length"),
        ("loop.lr=1", "use optim.lr"),
    ],
)
def test_an_unknown_key_gives_the_nearest_known_one(override: str, words: str) -> None:
    assert words in recipe_error(override)


def test_a_hint_names_a_key_once() -> None:
    assert recipe_error("evaluation.lr=1").count("use optim.lr") == 1


def test_every_key_that_a_hint_names_exists() -> None:
    schema = Recipe.model_json_schema()
    for hint in synonyms._PLACES:
        for section, key in re.findall(
            r"\b(data|optim|loop|evaluation|launch|tokenizer|task|model)\.([a-z_0-9]+)", hint
        ):
            options = [section.capitalize() + "Config"] if section not in ("task", "model") else list(schema["$defs"])
            found = [key in schema["$defs"][name].get("properties", {}) for name in options]
            assert any(found), (hint, section, key)


@pytest.mark.parametrize("pattern", ["*.csv", "*", "&x", "!x", "%x", "@x", "`x", "*.csv: y"])
def test_an_override_may_begin_with_a_yaml_indicator(pattern: str) -> None:
    assert parse(f"data.train={pattern}").data.train == pattern


def test_yaml_without_quotation_marks_is_reported(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("name: x\ndata: {train: *.csv}\n")
    with pytest.raises(UsageError, match=r"not valid YAML: (?s:.*)needs quotation marks, such as train: '\*\.csv'"):
        Recipe.load(tmp_path / "x.yaml")


def test_all_problems_come_at_once() -> None:
    text = recipe_error(
        "optim.lr=-1", "data.lanes=0", "loop.epoch=3", "seed=x", "model.heads=5", "optim.schedule=cosin", "name=a b"
    )
    assert "7 problems" in text
    for key in ("optim.lr", "data.lanes", "loop.epoch", "seed", "model", "optim.schedule", "name"):
        assert f"\n  {key}: " in text, key
    assert "(got -1)" in text
    assert "did you mean 'epochs'" in text
    assert "'cosine'" in text, "what is allowed"
    assert "heads=5" in text


def test_required_keys_are_named() -> None:
    values = tiny_recipe(ROOT)
    del values["data"]["root"], values["loop"]
    with pytest.raises(UsageError) as caught:
        Recipe.parse(values)
    assert "data.root: required" in str(caught.value)
    assert "loop: required" in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("version=2",), "version"),
        (("task.kind=translatoin",), "task.kind: 'translatoin' is unknown; did you mean 'translation'?"),
        (
            ("model.kind=mlp",),
            "model.kind: 'mlp' is unknown; allowed: transformer, encoder, cnn, transformer_xl, pre",
        ),
        (("loop.max_steps=null",), "the run would never end"),
        (("data.tokens_per_batch=8",), "tokens_per_batch=8 is below max_length=40"),
        (("data.tokens_per_batch=null",), "to limit a micro-batch"),
        (("tokenizer.pretrained=x",), "one of `train` and `pretrained`, not both"),
        (("loop.keep=1",), "loop.keep"),
        (("data.validation=1.5",), "data.validation"),
        (("optim.lr=.nan",), "optim.lr"),
        (("optim.lr=.inf",), "optim.lr"),
        (("track=[wandbb]",), "track.0: 'wandbb' is unknown; did you mean 'wandb'?"),
        (("track=[wandb, {wandb: {project: x}}]",), "track: wandb is listed twice"),
        (("track=[{wandb: {projct: x}}]",), "track.0: wandb.projct: unknown option; did you mean 'project'?"),
        (("track=[{wandb: {project: 3}}]",), "track.0: wandb.project: a text is needed (got 3)"),
        (
            ("track=[{wandb: {api_key: x}}]",),
            "credentials are not part of a recipe; set them in the environment (WANDB_API",
        ),
        (("track=[{mlflow: {tracking_uri: x}}]",), "servers and credentials are not part of a recipe"),
        (("track=[{mlflow: {}, wandb: {}}]",), "track.0: an entry has one name"),
        (("track=wandb",), "track: a list is needed; write [wandb]"),
        (("loop.eval_every=0",), "loop.eval_every"),
        (("loop.eval_every=daily",), "'epoch'"),
        (("data=3",), "data"),
        (("evaluation.metrics=[f1]",), "evaluation.metrics.0: 'f1' has another form; write package.module:name"),
        (("evaluation.metrics=own:f",), "evaluation.metrics: a list is needed; write [own:f]"),
        (("loop.callbacks=[Print]",), "loop.callbacks.0: 'Print' has another form; write package.module:name"),
        (("task.kind=own.Task",), "text_to_text, token_classification, translation, or package.module:Class"),
        (("optim.name=Adam",), "optim.name: 'Adam' has another form; did you mean 'adamw'?; allowed: adamw, sgd,"),
        (("name=my run",), "name: 'my run' has another form; use letters, digits"),
        (("loop.save_every=15m",), "loop.save_every: "),
    ],
)
def test_a_wrong_value_is_refused_before_anything_starts(overrides: tuple[str, ...], words: str) -> None:
    assert words in recipe_error(*overrides)


def test_constraints_of_task_and_cleaning_are_checked(tmp_path: Path) -> None:
    words = (
        *("loop.early_stopping.metric=accuracy", "data.cleaning=[fold_whitespce]", "data.columns={src: de, tgt: en}"),
        *("data.validation=null", "loop.early_stopping.patience=3", "optim.schedule=plateau"),
    )
    with pytest.raises(UsageError, match="5 problems") as caught:
        load_recipe(write_recipe(tmp_path / "x.yaml", ROOT), words)
    for part in (
        "loop.early_stopping.metric: 'accuracy'",
        "bleu",
        "did you mean 'fold_whitespace'",
        "data.columns.tgt",
        "did you mean 'trg'? its roles: src, trg",
        "and functions of your own as package.module:function",
        "loop.early_stopping.patience",
        "optim.schedule",
    ):
        assert part in str(caught.value), part


def test_a_recipe_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        parse().seed = 3  # type: ignore[misc]


# -- files -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "- a\n- b", "just words", "null"])
def test_a_recipe_that_is_no_mapping_is_reported(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match=r"x\.yaml: a recipe is a mapping"):
        from_text(tmp_path, text)


@pytest.mark.parametrize(
    "text",
    ["{", "a: b: c", "a: !!python/object/apply:os.system ['true']", "? [a, b]\n: 1", "? {a: 1}\n: 1", "a: *b", "\x00"],
)
def test_yaml_that_is_not_plain_is_reported(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match=r"x\.yaml"):
        from_text(tmp_path, text)


def test_no_regular_expression_is_shown() -> None:
    """Each pattern of a recipe key is one of the module that explains it in words."""

    def patterns(schema: Any) -> Iterator[str]:
        for key, value in schema.items() if isinstance(schema, dict) else enumerate(schema):
            if key == "pattern" and isinstance(value, str):
                yield value
            elif isinstance(value, dict | list):
                yield from patterns(value)

    found = set(patterns(Recipe.model_json_schema()))
    assert len(found) > 4
    assert [pattern for pattern in found if in_words(pattern, "x") is None] == []


def test_role_and_column_exchanged() -> None:
    recipe = Recipe.parse(tiny_recipe(ROOT), ["data.columns={de: src, en: trg}"])
    with pytest.raises(UsageError, match=r"did you mean src: de\? The role comes first, then the column"):
        check_recipe(recipe)


def test_a_file_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"missing\.yaml cannot be read"):
        Recipe.load(tmp_path / "missing.yaml")
    (tmp_path / "x.yaml").write_bytes(b"name: \xff")
    with pytest.raises(UsageError, match=r"x\.yaml cannot be read"):
        Recipe.load(tmp_path / "x.yaml")
    with pytest.raises(UsageError, match="cannot be read"):
        Recipe.load(tmp_path)


@pytest.mark.parametrize("text", ["seed: 1\nseed: 2", "optim:\n  lr: 1\n  name: sgd\n  lr: 2", "optim: {lr: 1, lr: 1}"])
def test_duplicate_keys_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match=r"duplicate key '(seed|lr)'"):
        from_text(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("3E-4", 3e-4),
        ("5e3", 5000.0),
        ("1.", 1.0),
        (".5", 0.5),
        ("-2.5e+1", -25.0),
        ("12", 12),
        ("-3", -3),
        ("0", 0),
        ("12:30:45", "12:30:45"),  # not 45045
        ("24:00:00", "24:00:00"),
        ("010", "010"),  # not 8
        ("0x10", "0x10"),
        ("1_000", "1_000"),
        ("2026-11-22", "2026-11-22"),
        ("true", True),
        ("False", False),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("off", "off"),
        ("null", None),
        ("~", None),
        ("e4", "e4"),
        ("1e", "1e"),
        ("'1e-4'", "1e-4"),
    ],
)
def test_scalars_are_read_as_intended(text: str, value: object) -> None:
    from trainer.recipe import parse_yaml

    found = parse_yaml(f"key: {text}", "here")["key"]
    assert found == value
    assert type(found) is type(value)


def test_a_norwegian_column_is_no_falsehood() -> None:
    assert parse("data.columns={src: no, trg: en}").data.columns == {"src": "no", "trg": "en"}


def test_a_time_limit_is_no_number() -> None:
    assert parse("launch.time=12:30:00").launch.time == "12:30:00"


# -- overrides ---------------------------------------------------------------------------------------------------------


def test_overrides_win_and_reach_every_depth() -> None:
    recipe: Any = parse(
        *(
            "optim.lr=1e-4",
            "optim.averaging.kind=ema",
            "data.validation=null",
            "track=[tensorboard, {wandb: {project: mt}}]",
        ),
        *("data.train={src: a.de, trg: a.en}", "optim.betas=[0.9, 0.98]", "seed=2", "seed=3", "name=x-1.2"),
    )
    assert recipe.optim.lr == 1e-4
    assert recipe.optim.averaging.kind == "ema"
    assert recipe.optim.betas == (0.9, 0.98)
    assert recipe.data.validation is None
    assert recipe.data.train == {"src": "a.de", "trg": "a.en"}
    assert recipe.track == ["tensorboard", {"wandb": {"project": "mt"}}]
    assert recipe.seed == 3, "the last one counts"


def test_the_old_form_of_the_ledger_is_read() -> None:
    recipe = parse("track=[ledger, mlflow]", "loop.ledger=false")
    assert (recipe.track, recipe.loop.ledger) == (["mlflow"], True)


def test_the_old_form_of_the_ledger_is_reported_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "old.yaml"
    path.write_text(yaml.safe_dump({**tiny_recipe(ROOT), "track": ["ledger"]}), encoding="utf-8")
    for _ in range(2):
        assert load_recipe(path).loop.ledger
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: track: [ledger] is deprecated; write loop.ledger: true"
    ]


def test_a_section_that_the_file_leaves_out_can_be_overridden() -> None:
    values = tiny_recipe(ROOT)
    del values["optim"]
    assert Recipe.parse(values, ["optim.plateau.factor=0.3"]).optim.plateau.factor == 0.3


@pytest.mark.parametrize("override", ["optim.lr", "=3", "optim..lr=3", ".lr=3", "optim.lr={", "optim.lr=[1"])
def test_malformed_overrides_are_reported(override: str) -> None:
    assert "override" in recipe_error(override)


def test_a_recipe_object_takes_overrides() -> None:
    recipe = parse()
    assert load_recipe(recipe) is recipe
    changed = load_recipe(recipe, ["seed=9"])
    assert (changed.seed, recipe.seed) == (9, 1)


# -- schema and agreement ----------------------------------------------------------------------------------------------


def test_the_schema_holds_every_section_with_its_choices() -> None:
    schema = json.loads(json.dumps(Recipe.model_json_schema()))
    assert set(schema["properties"]) == set(Recipe.model_fields)
    assert schema["additionalProperties"] is False
    assert "cosine" in json.dumps(schema["$defs"]["OptimConfig"]["properties"]["schedule"])


def test_which_keys_must_agree() -> None:
    old = parse().model_dump(mode="json")
    free = parse(
        "name=b",
        "evaluation.beam_size=3",
        "export.onnx=true",
        "loop.keep=9",
        "launch.nodes=3",
        "track=[wandb]",
        "loop.ledger=false",
    )
    assert changed_keys(old, free.model_dump(mode="json")) == {}
    words = (
        "optim.lr=1e-4",
        "loop.max_steps=99",
        "optim.averaging.kind=ema",
        "data.columns={src: a, trg: b}",
        "seed=5",
    )
    assert changed_keys(old, parse(*words).model_dump(mode="json")) == {
        "data.columns.src": ("de", "a"),
        "data.columns.trg": ("en", "b"),
        "loop.max_steps": (12, 99),
        "optim.averaging.kind": ("none", "ema"),
        "optim.lr": (0.002, 0.0001),
        "seed": (1, 5),
    }


def test_free_keys_exist() -> None:
    flat = json.dumps(parse().model_dump(mode="json"))
    for key in FREE_TO_CHANGE:
        assert f'"{key.rpartition(".")[2]}"' in flat, key


@pytest.mark.parametrize(
    ("key", "allowed", "expected"),
    [
        ("data.train.src", ["data.train"], True),
        ("data.train", ["data.train.src"], True),
        ("data.train", ["data.train"], True),
        ("data.train_more", ["data.train"], False),
        ("optim.lr", ["data.train"], False),
        ("optim.betas", ["optim"], True),
    ],
)
def test_allow_change_covers_nested_keys(key: str, allowed: list[str], expected: bool) -> None:
    from trainer.engine.resume_checks import _is_allowed

    assert _is_allowed(key, allowed) == expected
