"""Classification of texts, or of pairs of texts, into two or more classes: `text` (and `text_pair`) in, `label` out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from trainer.data.roles import Label, Roles, Text
from trainer.recipe.sections import Fraction, Section
from trainer.task.attention import attention_row, rounded
from trainer.task.base import IGNORED, SHOWN, Assessed, Batch, Example, Record, Task, Texts
from trainer.tasks.classification.metric_specs import SPECS

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from trainer.recipe import Recipe


Weight = Annotated[float, Field(ge=0)]


class ClassificationConfig(Section):
    """`task` section of a classification recipe."""

    kind: Literal["classification"] = "classification"
    labels: dict[str, str] = Field(
        description="value in the files: name of the class, in the order of the ids; or a list of the names",
        min_length=2,
    )
    pair: bool = Field(False, description="two texts per row: the roles are text, text_pair and label")
    class_weights: Literal["balanced"] | list[Weight] | None = Field(
        None, description="weights of the classes in their order; balanced: rows / (classes x rows of the class)"
    )
    truncation: Literal["head", "tail", "head_tail"] = Field(
        "head", description="which part of a text longer than data.max_length is kept"
    )
    head_share: Fraction = Field(0.25, description="share of the beginning (truncation: head_tail; Sun et al. 2019)")

    @field_validator("labels", mode="before")
    @classmethod
    def _as_mapping(cls, value: Any) -> Any:
        """Turn a list into a mapping. Keys that YAML reads as numbers become texts."""
        if isinstance(value, list):
            pairs = [(str(name), str(name)) for name in value]
        elif isinstance(value, dict):
            pairs = [(str(k), str(v)) for k, v in value.items()]
        else:
            return value
        found = dict(pairs)
        if len(found) < len(pairs):
            twice = next(key for key in found if sum(key == other for other, _ in pairs) > 1)
            raise ValueError(f"labels has {twice!r} twice (1 and '1' are the same text); list each label once")
        return found

    @model_validator(mode="after")
    def _consistent(self) -> ClassificationConfig:
        if isinstance(self.class_weights, list) and len(self.class_weights) != len(self.names):
            raise ValueError(f"class_weights has {len(self.class_weights)} numbers for {len(self.names)} classes")
        if isinstance(self.class_weights, list) and not any(self.class_weights):
            raise ValueError("class_weights are all 0: raise the weight of some class, or leave class_weights out")
        if len(self.names) < 2:
            raise ValueError(f"labels maps everything to {self.names[0]!r}; two or more classes are needed")
        return self

    @property
    def names(self) -> list[str]:
        """The names of the classes in the order of their ids. Several values may have one name."""
        return list(dict.fromkeys(self.labels.values()))


class Classification(Task):
    """One label per row. The loss of a step is divided by its rows."""

    kind = "classification"
    config = ClassificationConfig
    models = ("encoder", "pretrained")
    exporter_path = "trainer.tasks.classification.export:ClassificationExport"
    reporter_path = "trainer.tasks.classification.report:ClassificationReport"
    suggester_path = "trainer.tasks.classification.suggest:suggest"
    embeds = True
    averages = True
    inputs = ("input_ids",)
    metric_specs = SPECS
    cheap_metrics = ()
    toy_rows = (
        {"text": "A wonderful film.", "text_pair": "I liked it.", "label": "positive"},
        {"text": "Two hours of boredom, and no end.", "text_pair": "Too long.", "label": "negative"},
        {"text": "Great!", "text_pair": "Fun.", "label": "positive"},
        {"text": "The worst thing that I have seen this year.", "text_pair": "Bad.", "label": "negative"},
    )

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
        return {**dict.fromkeys(texts, Text()), "label": Label(frozenset(config.labels))}

    @property
    def settings(self) -> ClassificationConfig:
        config: Any = self.recipe.task
        return config

    def encode(self, rows: Sequence[Texts]) -> list[Example]:
        """Return `input_ids`, at most `data.max_length` with special tokens, and `label`: one class id, or none."""
        texts = self.token_ids(rows).values()
        names, labels = self.settings.names, self.settings.labels
        examples: list[Example] = []
        for row, *ids in zip(rows, *texts, strict=True):
            label = labels.get(row["label"]) if "label" in row else None
            input_ids, types = self.layout.join(self._cut(ids))
            example = {"input_ids": input_ids, "label": [] if label is None else [names.index(label)]}
            examples.append({**example, "token_type_ids": types} if self.settings.pair else example)
        return examples

    def tokenized(self, row: Texts) -> Texts:
        return {side: row[side] for side in (("text", "text_pair") if self.settings.pair else ("text",))}

    def cut_roles(self, sizes: Mapping[str, int]) -> list[str]:
        kept = self._rooms(list(sizes.values()))
        return [role for (role, size), room in zip(sizes.items(), kept, strict=True) if size > room]

    def _rooms(self, sizes: Sequence[int]) -> list[int]:
        """Return the tokens that each text may keep.

        The longer text of a pair loses more: each text gets half of the tokens, and what the other one does not need.
        """
        room = self.recipe.data.max_length - self.layout.special
        if len(sizes) == 1 or sum(sizes) <= room:
            return [room] * len(sizes)
        first = min(sizes[0], max(room // 2, room - sizes[1]))
        return [first, room - first]

    def _cut(self, sides: Sequence[list[int]]) -> list[list[int]]:
        return [self._cut_one(ids, room) for ids, room in zip(sides, self._rooms(list(map(len, sides))), strict=True)]

    def _cut_one(self, ids: list[int], room: int) -> list[int]:
        if len(ids) <= room:
            return ids
        share = {"head": 1.0, "tail": 0.0, "head_tail": self.settings.head_share}[self.settings.truncation]
        head = round(room * share)
        return ids[:head] + ids[len(ids) - (room - head) :]

    def collate(self, examples: Sequence[Example]) -> Batch:
        """input_ids, attention_mask (1 = token) and, for pairs, token_type_ids, all (B, W); labels (B,)."""
        import torch

        batch = self.pad_inputs(examples)
        if self.settings.pair and "token_type_ids" in self.tokenizer.model_input_names:
            batch["token_type_ids"] = self.pad([e["token_type_ids"] for e in examples], 0)
        labels = torch.tensor([e["label"][0] if e["label"] else IGNORED for e in examples], dtype=torch.int64)
        return {**batch, "labels": labels}

    def build_model(self, trained: Path | None = None) -> nn.Module:
        from trainer.models.classifiers import build_classifier

        return self.padded_for(build_classifier(self.recipe, self.tokenizer, self.settings.names, trained))

    def save_tokenizer(self, folder: Path) -> None:
        """Save the truncation side. Stock transformers has no head_tail; `right` is equal to `head`."""
        side = "left" if self.settings.truncation == "tail" else "right"
        self.tokenizer.truncation_side = self.tokenizer.init_kwargs["truncation_side"] = side
        super().save_tokenizer(folder)

    def model_config(self, model: nn.Module) -> dict[str, Any]:
        """Return config.json with id2label and label2id, and the configuration of the trunk if it has one."""
        from trainer.models.classifiers import config_json, label_maps

        config = label_maps(self.settings.names) | super().model_config(model)
        trunk: Any = getattr(model, "trunk", None)
        inner = config_json(trunk) if trunk is not None else None
        return config | ({"trunk": inner} if inner else {})

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        import torch.nn.functional as F

        weights = self._weights()
        if weights is None:
            return super().loss(model, batch)
        logits = self.logits(model, batch).float()
        return F.cross_entropy(
            logits,
            batch["labels"],
            logits.new_tensor(weights),
            ignore_index=IGNORED,
            reduction="sum",
            label_smoothing=self.recipe.optim.label_smoothing,
        )

    def _weights(self) -> list[float] | None:
        weights = self.settings.class_weights
        if weights != "balanced":
            return weights
        counts = dict.fromkeys(self.settings.names, 0)
        for value, count in self.data["train"]["labels"].items():
            counts[self.settings.labels[value]] += count
        return [sum(counts.values()) / (len(counts) * max(1, count)) for count in counts.values()]

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
        names, records = self.settings.names, []
        for row in logits.double().softmax(-1).tolist():
            best = max(range(len(row)), key=row.__getitem__)
            records.append({"prediction": names[best], "probabilities": dict(zip(names, row, strict=True))})
        return records

    def answer(self, record: Record) -> Record:
        probabilities, label = record["probabilities"], record["prediction"]
        return {"label": label, "confidence": probabilities[label], "probabilities": probabilities}

    def row_of(self, line: str) -> Texts:
        """Split a line at its tab into the two texts of a pair."""
        if not self.settings.pair:
            return {"text": line}
        first, _, second = line.partition("\t")
        return {"text": first, "text_pair": second}

    def explain(self, model: nn.Module, records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return the attention of every layer and head, and gradient × input of the predicted class."""
        import torch

        from trainer.models.explain import gradient_x_input, recording
        from trainer.models.fast_attention import use_attention
        from trainer.models.pooling import ends_with_summary

        use_attention(getattr(model, "trunk", model), "rankzero")
        special, names, rows = self.wordless, self.settings.names, []
        for record in records:
            example = self.encode([self.row_of(record["input"])])[0]
            batch = self.collate([example])
            with recording() as seen, torch.no_grad():
                self.logits(model, batch)
            if not seen:
                return []
            embedding: Any = model
            score = partial(self._logit, model, batch, names.index(record["prediction"]))
            relevance = gradient_x_input(embedding.get_input_embeddings(), score)[0]
            ids = example["input_ids"]
            kept = [i for i, token in enumerate(ids) if token not in special][:SHOWN]
            weights = torch.stack([w[0] for _, w in seen])  # (L, H, T, T), T with padding
            words = self.tokenizer.convert_ids_to_tokens([ids[i] for i in kept])
            standing = ends_with_summary(getattr(model, "trunk", getattr(model, "base_model", model)))
            seen_by_cls = rounded(weights[:, :, len(ids) - 1 if standing else 0][..., kept])
            among_kept = weights[:, :, kept][..., kept]
            rows.append({**attention_row(record, words, words, among_kept, relevance[kept]), "cls": seen_by_cls})
        return rows

    def _logit(self, model: nn.Module, batch: Batch, label: int) -> Tensor:
        return self.logits(model, batch)[0, label]

    def input_text(self, row: Texts) -> str:
        return f"{row['text']}\t{row['text_pair']}" if self.settings.pair else row["text"]

    def target_text(self, row: Texts) -> str:
        return self.settings.labels[row["label"]]

    def score(self, records: Iterable[Mapping[str, Any]], resamples: int) -> dict[str, Any]:
        from trainer.tasks.classification.metrics import score_classification

        return score_classification(records, self.settings.names, resamples=resamples)
