"""Longformer, BigBird and Reformer: widths, positions, randomness, and what does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import processes
import pytest
import torch
from review_helpers import BAD, GOOD, OTHER, recipe, written
from safetensors.numpy import load_file

from trainer.data.tokenization import train_tokenizer
from trainer.engine.corpus import Corpus
from trainer.engine.objective import Objective, freeze_unused
from trainer.engine.runtime import seed_for
from trainer.engine.trained_run import build_model
from trainer.errors import UsageError
from trainer.models.families import Padding
from trainer.models.freezing import freeze_embeddings
from trainer.recipe_loading import Recipe, load_recipe
from trainer.task.registry import make_task

CONFIGS: dict[str, dict[str, Any]] = {
    "longformer": {"attention_window": 8},
    "big_bird": {"block_size": 2, "num_random_blocks": 1},
    "reformer": {"local_attn_chunk_length": 8, "lsh_attn_chunk_length": 8},
}
SHORT, LONG = {"text": "a good film", "label": "1"}, {"text": " ".join(OTHER), "label": "0"}


def recipe_of(root: Path, family: str, task: dict[str, Any] | None = None, **sections: Any) -> Any:
    config = {**CONFIGS.get(family, {}), **sections.pop("config", {})}
    model = {
        "kind": "pretrained",
        "architecture": family,
        "size": "tiny",
        "config": config,
        **sections.pop("model", {}),
    }
    sections["tokenizer"] = {"train": {"kind": "unigram", "vocab_size": 60}}
    made = recipe(root, model, **sections)
    return made if task is None else Recipe.parse(made.model_dump(mode="json") | {"task": task})


def task_of(made: Any) -> Any:
    return make_task(made, train_tokenizer([" ".join(GOOD + BAD + OTHER)], made.tokenizer.train, 32))


def gradients(task: Any, model: Any, batch: Any) -> list[torch.Tensor]:
    model.zero_grad()
    seed_for(1, 2, 3)
    task.loss(model.train(), batch).backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


# -- widths ------------------------------------------------------------------------------------------------------------


def test_widths_satisfy_family_and_recipe() -> None:
    assert [Padding().also(8).width(n) for n in (1, 8, 9)] == [8, 8, 16]
    window = Padding(multiple=12).also(8)
    assert [window.width(n) for n in (1, 24, 25)] == [24, 24, 48]
    blocks = Padding(multiple=4, narrowest=20).also(8)
    assert [blocks.width(n) for n in (1, 24, 25)] == [24, 24, 32]


@pytest.mark.parametrize(
    ("family", "changes", "widths"),
    [
        ("longformer", {}, (8, 32)),
        ("longformer", {"config": {"attention_window": [12, 8]}}, (24, 48)),
        ("big_bird", {}, (16, 32)),  # 7 blocks of 2 are too few: 8, and a multiple of 4
        ("big_bird", {"config": {"attention_type": "original_full"}}, (4, 32)),
        ("reformer", {}, (32, 32)),
        ("reformer", {"config": {"axial_pos_embds": False}}, (8, 32)),
        ("reformer", {"data": {"max_length": 41, "tokens_per_batch": 96}}, (48, 48)),  # 41 -> 44 -> 48 = 6 x 8
    ],
)
def test_micro_batches_have_the_widths_of_their_family(
    reviews: Path, family: str, changes: Any, widths: tuple[int, int]
) -> None:
    """In a lane's micro-batches, which count them beforehand, as in what the model is given."""
    made = recipe_of(reviews, family, **changes)
    task = task_of(made)
    model = task.build_model()
    batch = task.collate(task.encode([{**LONG, "text": "a"}]))
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (1, widths[0])
    room = made.data.max_length
    assert task.padding.width(room) == widths[1]
    Objective(task, model).train()(**batch).backward()
    plan = Corpus(made, task).lanes()._plan
    assert [plan.width(n) for n in range(1, room + 1)] == [task.padding.width(n) for n in range(1, room + 1)]
    kept = (model.config.num_buckets, model.config.axial_pos_shape) if family == "reformer" else None
    assert kept is None or kept[0] is not None
    if family == "reformer" and model.config.axial_pos_embds:
        assert np.prod(kept[1]) == widths[1]


def test_short_batches_do_not_change_big_birds_attention(tmp_path: Path) -> None:
    """The library goes over to full attention at 14 tokens, and stays there."""
    task = task_of(recipe_of(tmp_path, "big_bird"))
    model = task.build_model().eval()
    long, short = task.collate(task.encode([LONG])), task.collate(task.encode([SHORT]))
    before = task.logits(model, long)
    task.logits(model, short)
    assert model.base_model.attention_type == "block_sparse"
    torch.testing.assert_close(task.logits(model, long), before, rtol=0, atol=0)
    full = task_of(recipe_of(tmp_path, "big_bird", config={"attention_type": "original_full"}))
    assert full.build_model().base_model.attention_type == "original_full"


@pytest.mark.parametrize("pooling", ["auto", "mean", "cls"])
@pytest.mark.parametrize("family", [*CONFIGS, "xlnet"])
def test_a_row_does_not_depend_on_its_neighbours(tmp_path: Path, family: str, pooling: str) -> None:
    """Also not where a longer one makes the padding wider, nor on what was asked before."""
    task = task_of(recipe_of(tmp_path, family, model={"pooling": pooling}))
    model = task.build_model().eval()
    rows = task.encode([SHORT, LONG])
    with torch.no_grad():
        both, alone = task.logits(model, task.collate(rows)), task.logits(model, task.collate(rows[:1]))
        torch.manual_seed(5)
        again = task.logits(model, task.collate(rows))
    torch.testing.assert_close(alone[0], both[0], atol=1e-6, rtol=1e-5)
    assert torch.equal(again, both)
    assert not torch.allclose(both[0], both[1], atol=1e-5), "the rows themselves are told apart"


def test_big_birds_attention_is_the_librarys_without_the_square(tmp_path: Path) -> None:
    """The same states and gradients; under autocast, where the library fails; memory that grows with the length."""
    from trainer.models.families.big_bird import BigBird

    task = task_of(recipe_of(tmp_path, "big_bird", model={"dropout": 0.0}))
    batch = task.collate(task.encode([LONG, SHORT]))
    ours, found = task.build_model(), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BigBird, "patch", lambda self, model: None)
        theirs = task.build_model()
    theirs.load_state_dict(ours.state_dict())
    for model in (ours, theirs):
        found.append([task.logits(model.train(), batch), *gradients(task, model, batch)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-7, rtol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        half = task.loss(ours, batch)
        with pytest.raises(RuntimeError, match="scatter"):  # if this fails, the library has mended it
            task.loss(theirs, batch)
    half.backward()
    assert half.item() == pytest.approx(task.loss(ours, batch).item(), abs=0.05)


# -- attention ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [None, {"kind": "language_modeling"}])
@pytest.mark.parametrize("pooling", ["auto", "mean"])
def test_longformers_first_token_sees_and_is_seen_everywhere(tmp_path: Path, task: Any, pooling: str) -> None:
    """One layer with a window of 4 to each side: only global attention carries a token from one end to the other."""
    config = {"num_hidden_layers": 1}
    made = task_of(recipe_of(tmp_path, "longformer", task, config=config, model={"pooling": pooling}))
    trunk: Any = made.build_model().eval()
    trunk = getattr(trunk, "trunk", trunk).base_model
    ids = torch.arange(5, 37)[None]
    first, last = ids.clone(), ids.clone()
    first[0, 0], last[0, -1] = 40, 40
    with torch.no_grad():
        plain, f, x = (
            trunk(input_ids=i, attention_mask=torch.ones_like(i)).last_hidden_state for i in (ids, first, last)
        )
    moved = (plain - x).abs().amax(-1)[0]
    assert moved[0] > 1e-5, "the first token sees the last"
    assert moved[1:-5].max() == 0, "tokens out of its window do not"
    assert ((plain - f).abs().amax(-1)[0] > 1e-6).all(), "every token sees the first"


# -- Reformer's randomness and reversible layers -----------------------------------------------------------------------


@pytest.mark.parametrize("family", CONFIGS)
def test_a_step_can_be_made_again(tmp_path: Path, family: str) -> None:
    task = task_of(recipe_of(tmp_path, family, model={"dropout": 0.2}))
    model = task.build_model()
    batch = task.collate(task.encode([SHORT, LONG]))
    first, again = gradients(task, model, batch), gradients(task, model, batch)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    seed_for(1, 3, 3)
    model.zero_grad()
    task.loss(model, batch).backward()
    assert not torch.equal(first[0], next(p.grad for p in model.parameters() if p.grad is not None)), "other dropout"


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_reformers_gradient_is_the_slope_of_its_loss(tmp_path: Path, dropout: float) -> None:
    """Its layers run again in the backward pass: with the same dropout, though there nothing is hashed any more."""
    task = task_of(recipe_of(tmp_path, "reformer", model={"dropout": dropout}))
    model = task.build_model().double().train()
    batch = task.collate(task.encode([SHORT, {**LONG, "text": " ".join(OTHER * 3)}]))

    def loss() -> torch.Tensor:
        seed_for(1, 2, 3)
        return -task.logits(model, batch).log_softmax(-1)[range(2), batch["labels"]].sum()

    loss().backward()
    for part in ("attention", "feed_forward", "embeddings"):
        moving = [p for name, p in model.named_parameters() if part in name]
        norm = float(torch.stack([(p.grad**2).sum() for p in moving]).sum().sqrt())
        values = []
        with torch.no_grad():
            for sign in (1, -1):
                for p in moving:
                    p.add_(p.grad, alpha=sign * 1e-6 / norm)
                values.append(float(loss()))
                for p in moving:
                    p.sub_(p.grad, alpha=sign * 1e-6 / norm)
        assert (values[0] - values[1]) / 2e-6 == pytest.approx(norm, rel=1e-5), part


def test_reformers_gradient_in_bf16_is_that_in_fp32_but_for_rounding(tmp_path: Path) -> None:
    task = task_of(recipe_of(tmp_path, "reformer", model={"dropout": 0.0}, config={"attn_layers": ["local"] * 2}))
    model = task.build_model()
    batch = task.collate(task.encode([SHORT, LONG]))
    exact = torch.cat([g.flatten() for g in gradients(task, model, batch)])
    with torch.autocast("cpu", torch.bfloat16):
        seed_for(1, 2, 3)
        model.zero_grad()
        loss = task.loss(model, batch)
    loss.backward()  # outside of autocast, as Accelerate does it
    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert torch.cosine_similarity(exact, found, 0) > 0.99


def test_reformers_layers_learn_over_frozen_embeddings(tmp_path: Path) -> None:
    task = task_of(recipe_of(tmp_path, "reformer"))
    model = task.build_model()
    freeze_embeddings(model)
    assert freeze_unused(Objective(task, model)) == []
    assert {n.split(".")[1] for n, p in model.named_parameters() if not p.requires_grad} == {"embeddings"}


# -- language modelling ------------------------------------------------------------------------------------------------

MASKED = {"kind": "language_modeling"}
CAUSAL = {"kind": "language_modeling", "objective": "causal"}


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("family", "task"),
    [
        ("longformer", MASKED),
        ("big_bird", MASKED),
        ("big_bird", {**CAUSAL, "packing": False}),
        ("big_bird", {**CAUSAL, "cross_documents": True}),
        ("reformer", {**CAUSAL, "packing": False}),
        ("reformer", {**CAUSAL, "cross_documents": True}),
    ],
)
def test_language_models_of_long_documents(reviews: Path, tmp_path: Path, family: str, task: Any) -> None:
    """They learn, evaluate, and one and two ranks make the same steps."""
    made = recipe_of(
        reviews, family, task, optim={"name": "sgd", "lr": 0.3, "clip_norm": 1.0},
        evaluation={"splits": [], "generation": {"new_tokens": 4}}, data={"validation": None},
    )  # fmt: skip
    runs = [tmp_path / "one", tmp_path / "two"]
    for ranks, run in enumerate(runs, start=1):
        processes.train(written(tmp_path, made), run, world=ranks).check()
    one, two = (load_file(run / "checkpoints/step-00000008/model.safetensors") for run in runs)
    assert max(float(np.abs(one[name] - two[name]).max()) for name in one) <= 2e-6
    from trainer import evaluate

    scores = evaluate(runs[0])
    assert scores["rows"] == 40
    assert scores["loss"] < np.log(60), "better than guessing among 60 tokens"


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("big_bird", {"config": {"attention_type": "block_sparse"}}, "cannot be trained with objective causal"),
        ("big_bird", {}, r"set task\.packing=false, or task\.cross_documents=true"),
        ("reformer", {}, r"set task\.packing=false, or task\.cross_documents=true"),
        ("xlnet", {}, "takes no position_ids"),
        (
            "longformer",
            {},
            "'longformer' cannot be loaded: the library has no AutoModelForCausalLM of this architecture",
        ),
    ],
)
def test_families_without_causal_attention_are_refused(tmp_path: Path, family: str, changes: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        build_model(task_of(recipe_of(tmp_path, family, CAUSAL, **changes)))


def test_a_bert_becomes_causal_automatically(tmp_path: Path) -> None:
    """Without `is_decoder` every token would see the one that it is asked for, and the loss would fall to nothing."""
    task = task_of(recipe_of(tmp_path, "bert", {**CAUSAL, "packing": False}))
    assert task.build_model().config.is_decoder


@pytest.mark.parametrize(
    ("name", "widths"),
    [("imdb-longformer", (32, 1024)), ("imdb-bigbird", (160, 1024)), ("imdb-reformer", (1024, 1024))],
)
def test_the_recipes_have_a_tiny_variant(name: str, widths: tuple[int, int]) -> None:
    """As `rankzero train imdb-longformer model.size=tiny`: random weights, the architecture's tokenizer, both ends."""
    made: Any = load_recipe(name, ["model.size=tiny", "data.root=x"])
    assert made.tokenizer_name is None
    assert made.tokenizer_training is not None
    settings = made.tokenizer_training.model_copy(update={"vocab_size": 300})
    task: Any = make_task(made, train_tokenizer([" ".join(GOOD + BAD + OTHER)], settings, 1024))
    model = task.build_model()
    for text, width in zip(("a", "a film " * 900), widths, strict=True):
        batch = task.collate(task.encode([{"text": text, "label": "1"}]))
        assert batch["input_ids"].shape == (1, width)
        Objective(task, model).train()(**batch).backward()
        assert torch.isfinite(task.assess(model.eval(), batch, predict=True).losses).all()


# -- what does not fit -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("longformer", {"config": {"attention_window": 512}}, r"tokens_per_batch=96 is less than the 512 tokens"),
        ("reformer", {"config": {"axial_pos_shape": [4, 4]}}, r"max_length=32 is more than the 16 positions .*4 x 4"),
        ("reformer", {"config": {"axial_pos_shape": [16, 16]}}, r"tokens_per_batch=96 is less than the 256 tokens"),
        (
            "reformer",
            {"config": {"num_hidden_layers": 3, "attn_layers": ["lsh"]}},
            r"layers=3 and attn_layers=.* contradict each other",
        ),
        (
            "longformer",
            {"config": {"attention_window": 7}},
            r"'longformer' cannot be loaded: .*has to be an even value",
        ),
        ("xlnet", {"config": {"d_head": 7}}, r"xlnet cannot have these sizes: .*`d_head` \(7\) should be equal"),
        ("big_bird", {"config": {"block_sise": 4}}, r"block_sise: big_bird has no such key; did you mean 'block_size'"),
    ],
)
def test_lengths_that_do_not_fit_are_refused_with_both_numbers(
    tmp_path: Path, family: str, changes: Any, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        task_of(recipe_of(tmp_path, family, **changes)).build_model()


def test_a_plan_refuses_models_that_need_values(tmp_path: Path) -> None:
    """Reformer needs the sum of its mask, and a plan has only shapes. BigBird needs no values."""
    from launch.tools.plan.trace import fake_model

    with pytest.raises(UsageError, match=r"ReformerFor.* cannot be planned.* needs the values of tensors.*--debug"):
        fake_model(task_of(recipe_of(tmp_path, "reformer")), on_cpu=True)
    _, layout = fake_model(task_of(recipe_of(tmp_path, "big_bird")), on_cpu=True)
    assert 0 < 2 * layout.layer == layout.elements - layout.outside


def test_sizes_at_which_full_attention_is_cheaper_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = recipe_of(tmp_path, "big_bird", config={"block_size": 4}, data={"max_length": 24})
    task_of(made).build_model()
    assert "padded to 32 tokens or more, data.max_length is 24" in caplog.text
