"""What the export asks a task. Each task implements it in trainer/tasks/<kind>/export.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from trainer.export.artifact import Array, Artifact
from trainer.export.parity_checks import Check, Comparison
from trainer.export.rows import Progress, Row
from trainer.models.families import family_of
from trainer.task.base import Example, Record, Task


class TaskExport:
    """Graphs, settings and answers of one task. Attributes other than `task` hold for every run of the task.

    Logits are compared under teacher forcing: both sides read the row's own text, so they compute the same quantity.

    Attributes:
        program: the class that run.py is generated from. None: the task has no graphs, only weights are exported.
        own_programs: classes instead of it, by runtime (see trainer.artifact_kinds).
        program_name: "program" in settings.json.
        no_graphs: why there is no program, as a part of a sentence.
        beams: the beam sizes that `rankzero bench` measures. Empty: the task has no benchmark.
        baseline: how eager fp32 answers in the baseline with which `rankzero bench` compares.
        compiles: whether torch.compile can be measured.
        auto_class: the class of transformers that loads model/. Empty: none is known.
        pipeline: the pipeline of transformers whose scores by label are those of `predict`. Empty: there is none.
    """

    program: ClassVar[type[Artifact] | None] = None
    own_programs: ClassVar[Mapping[str, type[Artifact]]] = {}
    program_name: ClassVar[str] = ""
    no_graphs: ClassVar[str] = "its task has no graph"
    beams: ClassVar[tuple[int, ...]] = ()
    baseline: ClassVar[str] = "every text padded to data.max_length"
    compiles: ClassVar[bool] = False
    auto_class: ClassVar[str] = ""
    pipeline: ClassVar[str] = ""

    def __init__(self, task: Task) -> None:
        self.task: Any = task

    @classmethod
    def program_for(cls, runtime: str) -> type[Artifact] | None:
        """Return the class of the programs that use a runtime."""
        return cls.own_programs.get(runtime, cls.program)

    @property
    def fits_bf16(self) -> bool:
        """Whether the outputs of this run's model fit the 8 bits of bf16. If not, bf16 is made only on request."""
        return True

    # -- the artifact --------------------------------------------------------------------------------------------------

    def write_graphs(self, model: Any, folder: Path) -> None:
        """Write the graphs of a model that `prepared` has copied; it may be changed."""
        raise NotImplementedError

    def settings(self, model: Any) -> dict[str, Any]:
        """Return what the program reads from settings.json, besides the keys that every task has."""
        raise NotImplementedError

    def encoded(self, example: Example) -> tuple[list[int], ...]:
        """Return an example of the task as run.py encodes it."""
        return (example["input_ids"],)

    def evaluation(self, beam: int) -> Any:
        """Return the `evaluation` section of the recipe with which PyTorch searches as the artifact does."""
        return self.task.recipe.evaluation.model_copy(update={"beam_size": beam})

    # -- logits of the same rows ---------------------------------------------------------------------------------------

    def compared(self, example: Example) -> Example:
        """Return the part of an example whose logits are compared."""
        return example

    def logit_count(self, example: Example) -> int:
        """Return how many logits `compared` has. A large vocabulary makes many, which bounds the batch."""
        return 1

    @torch.no_grad()
    def torch_logits(self, model: nn.Module, examples: Sequence[Example]) -> list[Array]:
        """Return fp32 logits of each example, without padding."""
        examples = self.task.corrupt([self.compared(example) for example in examples])
        logits = self.task.logits(model, self.task.collate(examples)).float().numpy()
        return self.unpadded(logits, examples)

    def unpadded(self, logits: Array, examples: Sequence[Example]) -> list[Array]:
        """Split the logits of a batch into those of each example."""
        return list(logits)

    def artifact_logits(self, artifact: Any, examples: Sequence[Example]) -> list[Array]:
        """Return the same logits, computed by the artifact."""
        raise NotImplementedError

    def extra_checks(self, artifact: Any, rows: Sequence[Row]) -> dict[str, Callable[[], Check]]:
        """Return checks of a few rows that only this task has, by name."""
        return {}

    # -- answers on the whole split ------------------------------------------------------------------------------------

    @torch.no_grad()
    def answers(self, model: nn.Module, examples: Sequence[Example]) -> list[Record]:
        """Return what `rankzero predict` prints for each example of a batch, by the weights."""
        return [self.task.answer(record) for record in self.task.predict(model, self.task.collate(examples))]

    def more_answers(self, model: nn.Module, examples: Mapping[str, Example], progress: Progress) -> dict[str, Record]:
        """Return further keys of the answers to some of all rows, by row id."""
        return {}

    def artifact_answers(self, artifact: Artifact, rows: Sequence[Row], progress: Progress) -> list[Record]:
        """Return the artifact's answers to these rows, in order."""
        examples = [self.encoded(row.example) for row in rows]
        answers: dict[int, Record] = {}
        for batch in artifact.batches([len(example[0]) for example in examples], artifact.settings["one_by_one"]):
            answers |= zip(batch, artifact.predict([examples[i] for i in batch]), strict=True)
            progress(f"{len(answers):,} of {len(rows):,} rows")
        return [answers[i] for i in range(len(rows))]

    def compare(self, comparison: Comparison) -> tuple[dict[str, Check], list[Record]]:
        """Compare the answers of artifact and weights: checks by name, and the rows that differ most.

        By default, the share of rows whose "prediction" is the target.
        """
        c = comparison
        gaps = [float(a["prediction"] != row.answer["prediction"]) for row, a in zip(c.rows, c.answers, strict=True)]
        return {"accuracy": c.accuracy("prediction", c.limits.int8_accuracy)}, c.worst_rows(gaps, "prediction")

    # -- model/ in stock libraries (what trainer.export.model_gate asks) -----------------------------------------------

    def stock_problem(self, model: nn.Module) -> str | None:
        """Return why stock libraries cannot give the outputs of `predict`, as a part of a sentence, or None."""
        if not self.auto_class:
            return f"task {self.task.kind} names no class of transformers that loads its model"
        return family_of(getattr(getattr(model, "trunk", model), "config", None)).stock_problem

    def stock_reads(self, example: Example) -> bool:
        """Return whether a stock tokenizer, which cuts long texts at one side, gives the ids of an example."""
        return True

    def stock_ids_agree(self, example: Example, ids: Sequence[int]) -> bool:
        """Return whether the ids of a stock tokenizer are those of an example."""
        return list(self.encoded(example)[0]) == list(ids)

    def stock_labels(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Return `labels`, whose probabilities are compared, and `input_ids` if no tokenizer makes them.

        Empty: the logits of each row are compared.
        """
        return {}

    def stock_outputs(self, model: nn.Module, examples: Sequence[Example]) -> list[Array]:
        """Return what is compared: of each example `stock_share` of its logits."""
        return [self.stock_share(logits) for logits in self.torch_logits(model, examples)]

    def stock_share(self, logits: Array) -> Array:
        """Return the numbers that `predict` prints, from the logits of an example."""
        return np.exp(logits - log_sum_exp(logits)[..., None])

    def stock_scores(self, answer: Record) -> dict[str, float]:
        """Return the scores by label of an answer, as `pipeline` returns them."""
        scores: dict[str, float] = answer["probabilities"]
        return scores

    def stock_limits(self, examples: Sequence[Example]) -> dict[int, int]:
        """Return which examples `generate` continues or answers, with the most new tokens; none by default."""
        return {}

    def stock_texts(self, model: nn.Module, examples: Sequence[Example]) -> list[str]:
        """Return what `predict` writes for these examples."""
        return [str(self.answers(model, [example])[0]["prediction"]) for example in examples]


class LabelProbabilities:
    """A mixin before TaskExport: the probabilities of the labels of a text are compared."""

    def stock_share(self, logits: Array) -> Array:
        return logits  # stock_program.py returns probabilities

    def stock_outputs(self, model: nn.Module, examples: Sequence[Example]) -> list[Array]:
        export: Any = self
        found = []
        for example in examples:
            (logits,) = export.torch_logits(model, [example])
            (labels,) = export.stock_labels([example])["labels"]
            kept = np.array([label for label in labels if label >= 0], dtype=np.int64)
            picked = logits if len(logits) == len(kept) else logits[np.array(labels) >= 0]
            found.append(np.exp(picked[np.arange(len(kept)), kept] - log_sum_exp(picked)))
        return found


def log_sum_exp(logits: Array) -> Array:
    """(…, V) -> (…)"""
    largest = logits.max(-1, keepdims=True)
    return np.log(np.exp(logits - largest).sum(-1)) + largest[..., 0]
