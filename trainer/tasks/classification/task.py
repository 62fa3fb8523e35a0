"""Classification of texts, or of pairs of texts, into two or more classes: `text` (and `text_pair`) in, `label` out.

Tasks with several labels or with numbers per row (`task.mode`) are subclasses, in folders of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from trainer.data.roles import Label, Roles, Text
from trainer.errors import DataError
from trainer.models import loss_groups
from trainer.models.hf_config import config_json, label_maps
from trainer.task.base import IGNORED, Assessed, Batch, Example, Record, Row, Texts
from trainer.task.metrics import Metric
from trainer.tasks.classification.calibrated import CalibratedTask
from trainer.tasks.classification.config import ClassificationConfig
from trainer.tasks.classification.metric_specs import SPECS
from trainer.tasks.classification.roles import RowWeight
from trainer.tasks.classification.truncation import cut, rooms

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from trainer.recipe import Recipe


class Classification(CalibratedTask):
    """One label per row. The loss of a step is divided by its rows, or by the sum of their weights."""

    kind = "classification"
    config = ClassificationConfig
    models = ("encoder", "cnn", "pretrained")
    exporter_path = "trainer.tasks.classification.export:ClassificationExport"
    reporter_path = "trainer.tasks.classification.report:ClassificationReport"
    baselines_path: ClassVar[str | None] = "trainer.tasks.classification.baseline:of_task"
    suggester_path = "trainer.tasks.classification.suggest:suggest"
    embeds = True
    averages = True
    inputs = ("input_ids",)
    mask_optional = True
    padding_free = True
    r_drop = True
    metric_specs: ClassVar[tuple[Metric, ...]] = SPECS
    cheap_metrics = ()
    problem_type: ClassVar[str | None] = None  # in config.json of a model with the library's own head
    weighted: ClassVar[bool] = False  # rows have a weight
    toy_rows: ClassVar[tuple[Row, ...]] = (
        {"text": "A wonderful film.", "text_pair": "I liked it.", "label": "positive"},
        {"text": "Two hours of boredom, and no end.", "text_pair": "Too long.", "label": "negative"},
        {"text": "Great!", "text_pair": "Fun.", "label": "positive"},
        {"text": "The worst thing that I have seen this year.", "text_pair": "Bad.", "label": "negative"},
    )

    @classmethod
    def problems(cls, recipe: Recipe) -> list[str]:
        config: Any = recipe.task
        found = cls.lone_pair(recipe) + cls.uncounted(recipe)
        if recipe.data.validation is not None:
            return found
        needing = {"calibration": config.calibration, "thresholds": config.thresholds == "auto"}
        return found + [f"task.{key}: needs data.validation, which is null" for key, given in needing.items() if given]

    @classmethod
    def lone_pair(cls, recipe: Recipe) -> list[str]:
        """Return whether a second text is named that the task does not read."""
        config: Any = recipe.task
        lone = "text_pair" in recipe.data.columns and not config.pair
        return ["task.pair: data.columns.text_pair names a second text; set task.pair=true"] if lone else []

    @classmethod
    def uncounted(cls, recipe: Recipe) -> list[str]:
        """Return whether counts of labels are needed, and no row is read to count them."""
        config: Any = recipe.task
        if recipe.data.check != "off" or config.class_weights != "balanced":
            return []
        return ["data.check=off: task.class_weights=balanced needs counts of labels; set data.check=sample"]

    @classmethod
    def lacking(cls, recipe: Recipe, data: Mapping[str, Any]) -> str | None:
        """Return whether a class is missing, which areas under curves need."""
        config: Any = recipe.task
        metric = recipe.loop.early_stopping.metric
        if metric not in ("roc_auc", "average_precision") or "validation" not in data:
            return None
        there = {config.labels.get(value) for value in data["validation"]["labels"]}
        missing = ", ".join(repr(name) for name in config.names if name not in there)
        return f"no row of data.validation is {missing}" if missing else None

    @classmethod
    def roles(cls, config: ClassificationConfig) -> Roles:
        texts = ("text", "text_pair") if config.pair else ("text",)
        weight = {"weight": RowWeight()} if cls.weighted else {}
        return {**dict.fromkeys(texts, Text()), **cls.target_roles(config), **weight}

    @classmethod
    def target_roles(cls, config: ClassificationConfig) -> Roles:
        """Return the roles of what is predicted."""
        return {"label": Label(frozenset(config.labels))}

    @property
    def smoothing(self) -> float:
        """Share of the probability that is spread over all labels."""
        own = self.settings.label_smoothing
        return self.recipe.optim.label_smoothing if own is None else own

    def encode(self, rows: Sequence[Row]) -> list[Example]:
        """Return `input_ids`, at most `data.max_length` with special tokens, and what `encode_target` returns."""
        texts = self.token_ids(rows).values()
        examples: list[Example] = []
        for row, *ids in zip(rows, *texts, strict=True):
            input_ids, types = self.layout.join(self._cut(ids))
            example = {"input_ids": input_ids, **self.encode_target(row)}
            if "weight" in row:
                example["weight"] = [row["weight"]]
            examples.append({**example, "token_type_ids": types} if self.settings.pair else example)
        return examples

    def encode_target(self, row: Row) -> Example:
        """Return `label`: one class id, or none where the row has no label."""
        label = self.settings.labels.get(row["label"]) if "label" in row else None
        return {"label": [] if label is None else [self.settings.names.index(label)]}

    def tokenized(self, row: Row) -> Texts:
        return {side: row[side] for side in (("text", "text_pair") if self.settings.pair else ("text",))}

    def doubts(self, row: Row) -> list[str]:
        if not self.settings.pair or row["text"] != row["text_pair"]:
            return []
        return ['have the same text in "text" and "text_pair". Check data.columns']

    def cut_roles(self, sizes: Mapping[str, int]) -> list[str]:
        kept = self._rooms(list(sizes.values()))
        return [role for (role, size), room in zip(sizes.items(), kept, strict=True) if size > room]

    def _rooms(self, sizes: Sequence[int]) -> list[int]:
        return rooms(sizes, self.recipe.data.max_length - self.layout.special)

    def _cut(self, sides: Sequence[list[int]]) -> list[list[int]]:
        share = {"head": 1.0, "tail": 0.0, "head_tail": self.settings.head_share}[self.settings.truncation]
        return [cut(ids, room, share) for ids, room in zip(sides, self._rooms(list(map(len, sides))), strict=True)]

    def collate(self, examples: Sequence[Example]) -> Batch:
        """input_ids, attention_mask (1 = token) and, for pairs, token_type_ids, all (B, W); labels; weights (B,)."""
        import torch

        batch = self.pad_inputs(examples)
        if self.settings.pair and "token_type_ids" in self.tokenizer.model_input_names:
            batch["token_type_ids"] = self.pad([e["token_type_ids"] for e in examples], 0)
        batch["labels"] = self.collate_targets(examples)
        if self.weighted:
            batch["weights"] = torch.tensor([e.get("weight", [1.0])[0] for e in examples], dtype=torch.float32)
        return batch

    def collate_targets(self, examples: Sequence[Example]) -> Tensor:
        """Return labels (B,) int64, IGNORED for a row without one."""
        import torch

        return torch.tensor([e["label"][0] if e["label"] else IGNORED for e in examples], dtype=torch.int64)

    def targets(self, batch: Batch) -> float:
        """Return the labels that count, each times the weight of its row.

        Weights are fp32 and summed in fp64, so that the sum does not depend on the number of ranks.
        """
        if "weights" not in batch:
            return super().targets(batch)
        counts = (batch["labels"] != IGNORED).reshape(len(batch["labels"]), -1).sum(-1)
        return float((batch["weights"].double() * counts).sum())

    def build_model(self, trained: Path | None = None) -> nn.Module:
        from trainer.models.classifiers import build_classifier

        if trained is not None:
            self.read_calibration(trained)
        names = self.settings.names
        model = build_classifier(self.recipe, self.tokenizer, names, trained, self.problem_type)
        return self.padded_for(model)

    def save_tokenizer(self, folder: Path, tokenizer: Any = None, side: str = "right") -> None:
        """Save the truncation side. Stock transformers has no head_tail; `right` is equal to `head`."""
        super().save_tokenizer(folder, tokenizer, "left" if self.settings.truncation == "tail" else side)

    def model_config(self, model: nn.Module) -> dict[str, Any]:
        """Return config.json with id2label and label2id, and the configuration of the trunk if it has one."""
        config = label_maps(self.settings.names) | super().model_config(model)
        trunk: Any = getattr(model, "trunk", None)
        inner = config_json(trunk) if trunk is not None else None
        calibration = {"calibration": self.calibrated} if self.calibrated else {}
        return config | calibration | ({"trunk": inner} if inner else {})

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        return super().logits(model, {name: tensor for name, tensor in batch.items() if name != "weights"})

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        import torch.nn.functional as F

        from trainer.tasks.classification.losses import focal_cross_entropy

        weights, gamma = self.class_weights(), self.settings.focal_gamma
        if weights is None and not gamma and not self.weighted:
            return super().loss(model, batch)
        logits, labels = self.logits(model, batch).float(), batch["labels"]
        by_class = None if weights is None else logits.new_tensor(weights)
        if gamma or self.weighted:
            losses = focal_cross_entropy(logits, labels, by_class, self.smoothing, gamma)
            return loss_groups.total(losses * batch["weights"] if self.weighted else losses)
        kind = "sum" if loss_groups.current() is None else "none"
        loss = F.cross_entropy(
            logits, labels, by_class, ignore_index=IGNORED, reduction=kind, label_smoothing=self.smoothing
        )
        return loss if kind == "sum" else loss_groups.total(loss)

    def class_weights(self) -> list[float] | None:
        """Return the weights of the classes in the order of their ids."""
        if self.settings.class_weights != "balanced":
            return self.settings.weights_by_class
        counts = self.class_counts()
        return [sum(counts) / (len(counts) * max(1, count)) for count in counts]

    def class_counts(self) -> list[int]:
        """Return the training rows of each class, in the order of the ids."""
        counts = dict.fromkeys(self.settings.names, 0)
        for value, count in self.data["train"]["labels"].items():
            counts[self.settings.labels[value]] += count
        return list(counts.values())

    # -- evaluation ------------------------------------------------------------------------------------------------

    def assess(self, model: nn.Module, batch: Batch, *, predict: bool) -> Assessed:
        """Compute losses and predictions with one forward."""
        import torch.nn.functional as F

        logits, labels = self.logits(model, batch).float(), batch["labels"]
        losses = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="none")
        return Assessed(losses, (labels != IGNORED).long(), self._records(logits))

    def predict(self, model: nn.Module, batch: Batch) -> list[Record]:
        return self._records(self.logits(model, batch).float())

    def _records(self, logits: Tensor) -> list[Record]:
        """Compute probabilities in float64, so that they sum to one and do not depend on the batch in fp32."""
        names, records, decision = self.settings.names, [], self.decision
        for row in logits.double().softmax(-1).tolist():
            if decision is None:
                best = max(range(len(row)), key=row.__getitem__)
            else:
                number, threshold = decision
                best = number if row[number] >= threshold else 1 - number
            records.append({"prediction": names[best], "probabilities": dict(zip(names, row, strict=True))})
        return records

    def answer(self, record: Record) -> Record:
        probabilities, label = record["probabilities"], record["prediction"]
        return {"label": label, "confidence": probabilities[label], "probabilities": probabilities}

    def row_of(self, line: str) -> Row:
        """Split a line at its tab into the two texts of a pair.

        Raises:
            DataError: the line has no tab.
        """
        if not self.settings.pair:
            return {"text": line}
        first, tab, second = line.partition("\t")
        if not tab:
            raise DataError("the line has no tab: two texts are needed, with a tab between them")
        return {"text": first, "text_pair": second}

    def explain(self, model: nn.Module, records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return the attention of every layer and head, and gradient × input of one output, the predicted class."""
        from trainer.tasks.classification.explain import explained_rows

        return explained_rows(self, model, records)

    def explained(self, record: Mapping[str, Any]) -> int:
        """Return the number of the output whose relevance is shown."""
        return self.settings.names.index(record["prediction"])

    def written_target(self, answer: Mapping[str, Any]) -> Any:
        """Return the first value that files hold for the class."""
        return next(value for value, name in self.settings.labels.items() if name == answer["label"])

    def input_text(self, row: Row) -> str:
        return f"{row['text']}\t{row['text_pair']}" if self.settings.pair else row["text"]

    def target_text(self, row: Row) -> Any:
        return self.settings.labels[row["label"]]

    def score(self, records: Iterable[Mapping[str, Any]], resamples: int) -> dict[str, Any]:
        from trainer.tasks.classification.metrics import score_classification

        return score_classification(records, self.settings.names, resamples=resamples)
