"""A run whose model has been written, opened from its directory alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainer import tensors, user_code
from trainer.data.cleaning import cleaner
from trainer.data.counter_rng import key
from trainer.data.python_rows import iter_rows, with_own_rows
from trainer.engine import setup
from trainer.engine.corpus import Corpus, batches_by_length
from trainer.engine.evaluate import evaluate
from trainer.engine.runtime import Runtime
from trainer.engine.state import copy_weights
from trainer.errors import CheckpointError, UsageError
from trainer.evaluation.predictions import write_predictions
from trainer.files import without_nan, write_json
from trainer.models.adapters import adapter_of, inject
from trainer.models.fast_attention import use_attention
from trainer.models.folder import read_folder
from trainer.models.init_from import begin_from
from trainer.recipe import Recipe, changed_keys
from trainer.recipe.parsing import apply_overrides
from trainer.rundir import RunDir
from trainer.task.base import Line, Record, Task
from trainer.task.registry import make_task

PREDICT_WINDOW = 512  # texts that are sorted by length together


def build_model(task: Task, trained: Path | None = None, *, check: bool = True) -> nn.Module:
    """Return the untrained model, with the same weights on every rank and at every start, and with its adapter.

    Args:
        task: builds it.
        trained: the folder of a trained model, for parts that are read from it instead.
        check: False leaves out `Task.check_model`, which needs the weights.

    Raises:
        UsageError: it cannot be loaded, or `model.init_from` names a run that does not fit.
    """
    torch.manual_seed(key(task.recipe.seed, "init") % 2**63)
    model = task.build_model(trained)
    if trained is not None:  # its adapter is merged
        return model
    begin_from(model, task.recipe.model)
    adapter = adapter_of(task.recipe)
    if adapter is not None:
        model = inject(model, adapter)
    if check:
        task.check_model(model)
    return model


def write_evaluation(run: RunDir, split: str, scores: dict[str, Any], records: Iterable[Record]) -> None:
    """Write predictions.jsonl and metrics.json of a split."""
    folder = run.evaluation(split)
    folder.mkdir(parents=True, exist_ok=True)
    write_predictions(folder / "predictions.jsonl", records)
    write_json(folder / "metrics.json", without_nan(scores))


def best_device() -> torch.device:
    """Return the device for the inference of a finished model."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def choose_attention(model: nn.Module, attention: str | None) -> None:
    """Set the attention of a pretrained model for inference.

    `model.attention=auto` is SDPA here, because our own attention is for training in bf16.
    """
    trunk = getattr(model, "trunk", model)
    if attention is not None and hasattr(trunk, "set_attn_implementation"):
        use_attention(trunk, "sdpa" if attention == "auto" else attention)


def _check_overrides(trained: Recipe, recipe: Recipe) -> None:
    """Refuse overrides under which trained weights of the same shapes would be used for something else.

    Raises:
        UsageError: model, tokenizer or the order of the classes differ from the training's.
    """
    changed = changed_keys(trained.model_dump(mode="json"), recipe.model_dump(mode="json"))
    wrong = {
        key: values for key, values in changed.items()
        if key.startswith(("model.", "tokenizer.")) and key != "model.attention"
    }  # fmt: skip
    before, after = (getattr(r.task, "names", None) for r in (trained, recipe))
    if before != after:
        wrong["task.labels"] = (before, after)
    if wrong:
        lines = "".join(f"\n  {key}: {then!r} -> {now!r}" for key, (then, now) in wrong.items())
        raise UsageError(f"overrides change what the run's weights were trained for; leave these keys out:{lines}")


@dataclass(frozen=True)
class TrainedRun:
    """A run whose model/ has been written, opened from its directory alone."""

    run: RunDir
    recipe: Recipe
    task: Task
    model: nn.Module

    @classmethod
    def open(cls, run: RunDir, recipe_type: type[Recipe], overrides: Sequence[str] = ()) -> TrainedRun:
        """Open a run with its recipe, tokenizer and weights.

        Raises:
            UsageError: this is not a run directory.
            CheckpointError: its model has not been written yet, or does not fit its recipe.
        """
        task = cls.task_of(run, recipe_type, overrides)
        weights = run.model / "model.safetensors"
        if not tensors.exists(weights):
            raise CheckpointError(f"{run.path} has no model yet: finish it with `rankzero train` on the same recipe")
        model = build_model(task, run.model)
        copy_weights(model, read_folder(run.model), str(weights))
        return cls(run, task.recipe, task, model.eval())

    @staticmethod
    def task_of(run: RunDir, recipe_type: type[Recipe], overrides: Sequence[str] = ()) -> Task:
        """Return the task of a run, without its model.

        Raises:
            UsageError: this is not a run directory, or an override changes what the trained weights are for.
        """
        run.check()
        user_code.trust(apply_overrides({}, overrides))  # who types the name of a module trusts it
        recipe = recipe_type.load(run.recipe, overrides)
        if overrides:
            _check_overrides(recipe_type.load(run.recipe), recipe)
        cleaner(recipe.data.cleaning)  # refuses code that is not trusted, before the first row
        task = make_task(with_own_rows(recipe, run), setup.read_tokenizer(run))
        if (run.model / "config.json").exists():
            task.read_calibration(run.model)
        return task

    def evaluate(self, runtime: Runtime, split: str) -> dict[str, Any]:
        """Return the scores of a split. Rank zero writes evaluation/<split>/. All ranks."""
        model = self.model.to(runtime.device)
        corpus = Corpus(self.recipe, self.task)
        resamples = self.recipe.evaluation.bootstrap
        folder = self.run.path
        scores, records = evaluate(runtime, self.task, model, corpus, split, folder, predict=True, resamples=resamples)
        runtime.on_main(lambda: write_evaluation(self.run, split, scores, records))
        return scores

    @torch.no_grad()
    def predict(self, texts: Iterable[Line]) -> Iterator[dict[str, Any]]:
        """Return one record per text or row, in order. A window is sorted by length and cut into batches.

        The record of a text that was truncated has "truncated": true. The record of a text that cannot be encoded has
        an "error" in place of a prediction.
        """
        model, device = self._for_inference()
        width, limit = self.task.padding.width, self.recipe.evaluation.tokens_per_batch
        source = iter_rows(texts, self.task.input_columns.values())
        while window := list(islice(source, PREDICT_WINDOW)):
            examples, errors = self.task.encode_lines_apart(window)
            rows = list(examples)
            predictions: dict[int, Record] = {i: {"error": error} for i, error in errors.items()}
            for positions in batches_by_length([self.task.length(examples[i]) for i in rows], width, limit):
                batch = [rows[position] for position in positions]
                inputs = self.task.collate([examples[i] for i in batch])
                records = self.task.predict(model, {name: t.to(device) for name, t in inputs.items()})
                predictions |= dict(zip(batch, map(self.task.answer, records), strict=True))
            for i, text in enumerate(window):
                cut = i in examples and self.task.truncated(text, examples[i])
                yield {"text": self.task.line_of(text), **predictions[i], **({"truncated": True} if cut else {})}

    def stream(self, text: str) -> Iterator[str]:
        """Yield the continuation of a text by a language model, in pieces as they are generated.

        Raises:
            UsageError: the task does not continue texts.
        """
        model, device = self._for_inference()
        inputs = {name: tensor.to(device) for name, tensor in self.task.collate(self.task.encode_lines([text])).items()}
        yield from self.task.stream(model, inputs)

    def _for_inference(self) -> tuple[nn.Module, torch.device]:
        device = best_device()
        choose_attention(self.model, getattr(self.recipe.model, "attention", None))
        return self.model.to(device), device
