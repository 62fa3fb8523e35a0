"""The `task` section of a classification recipe: one label, several labels or numbers per row."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from trainer.recipe.section import Written
from trainer.recipe.sections import Fraction, OwnName, Section, is_changed
from trainer.user_code import is_reference

Weight = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(gt=0, lt=1)]

# Keys that only some modes have.
_MODES: dict[str, tuple[str, ...]] = {
    "separator": ("multi",),
    "thresholds": ("single", "multi"),
    "calibration": ("single",),
    "class_weights": ("single", "multi"),
    "focal_gamma": ("single", "multi"),
    "label_smoothing": ("single", "multi"),
    "targets": ("regression",),
    "loss": ("regression",),
    "huber_delta": ("regression",),
}


class ClassificationConfig(Section):
    """`task` section of a classification recipe."""

    kind: Literal["classification"] = "classification"
    mode: Literal["single", "multi", "regression"] = Field(
        "single", description="single: one label per row; multi: a list of labels; regression: one or more numbers"
    )
    labels: dict[str, str] = Field(
        default_factory=dict,
        description="value in the files: name of the class, in the order of the ids; or a list of the names",
    )
    pair: bool = Field(False, description="two texts per row: the roles are text, text_pair and the target's")
    separator: str | None = Field(
        None, min_length=1, description="the column of labels is a text with this separator; null: a list (multi)"
    )
    targets: list[str] = Field(
        default_factory=list, description="names of several numbers per row, each a role; empty: the role value"
    )
    class_weights: Literal["balanced"] | list[Weight] | dict[str, Weight] | None = Field(
        None,
        description="weights of the classes in their order, or name: weight (1 where left out); balanced: rows / "
        "(classes x rows of the class), and for multi rows without the label / rows with it",
    )
    focal_gamma: Annotated[float, Field(ge=0)] = Field(
        0.0, description="exponent of the focal loss (Lin et al. 2017): rows that are predicted well count less"
    )
    label_smoothing: Fraction | None = Field(None, description="replaces optim.label_smoothing; null: that one")
    thresholds: Literal["auto"] | Share | dict[str, Share] | None = Field(
        None,
        description="probability from which a label is predicted, for all or by name (0.5 where left out); of two "
        "classes: of the second one, or of the named one; auto: with the best F1 on validation; null: auto for multi, "
        "the most probable class for single",
    )
    calibration: Literal["temperature"] | None = Field(
        None, description="temperature: scale the logits after training so that probabilities fit validation (single)"
    )
    loss: Literal["mse", "mae", "huber"] | OwnName = Field(
        "mse",
        description="loss of standardized targets (regression); or, in every mode, a function package.module:function "
        "of logits and labels that returns the sum of the losses of all labels",
    )
    huber_delta: Annotated[float, Field(gt=0)] = Field(
        1.0, description="standardized error from which the Huber loss is linear (loss: huber)"
    )
    truncation: Literal["head", "tail", "head_tail"] = Field(
        "head", description="which part of a text longer than data.max_length is kept"
    )
    head_share: Fraction = Field(0.25, description="share of the beginning (truncation: head_tail; Sun et al. 2019)")

    @field_validator("labels", mode="before", json_schema_input_type=dict[str, Written] | list[Written])
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

    @field_validator("class_weights", "thresholds", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        """Turn names that YAML reads as numbers into texts."""
        return {str(name): number for name, number in value.items()} if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _consistent(self) -> ClassificationConfig:
        for key, modes in _MODES.items():
            own = key == "loss" and is_reference(self.loss)  # every mode may have a function of the user
            if self.mode not in modes and is_changed(self, key) and not own:
                allowed = " and ".join(modes)
                raise ValueError(f"{key} is for mode {allowed}, and mode is {self.mode}: leave {key} out")
        if self.mode == "regression":
            return self._regression()
        self._check_labels()
        self._check_weights()
        self._check_thresholds()
        return self

    def _regression(self) -> ClassificationConfig:
        if self.labels:
            raise ValueError("labels is for modes single and multi, and mode is regression: leave labels out")
        if len(set(self.targets)) < len(self.targets):
            raise ValueError("targets has a name twice; list each target once")
        if taken := [name for name in self.targets if name in ("text", "text_pair", "weight")]:
            raise ValueError(f"targets has {taken[0]!r}, which is the name of another role; choose another name")
        return self

    def _check_labels(self) -> None:
        least = 2 if self.mode == "single" else 1
        if len(self.labels) < least:
            count = "two or more" if least == 2 else "one or more"
            raise ValueError(f"labels lists {len(self.labels)} classes; {count} are needed")
        if len(self.names) < least:
            raise ValueError(f"labels maps everything to {self.names[0]!r}; two or more classes are needed")

    def _check_thresholds(self) -> None:
        named = self.thresholds if isinstance(self.thresholds, dict) else {}
        for name in named:
            if name not in self.names:
                raise ValueError(f"thresholds has {name!r}, which is no class; the classes: {', '.join(self.names)}")
        if self.mode == "multi" or self.thresholds is None:
            return
        if len(self.names) != 2:
            raise ValueError(f"thresholds is for two classes or mode multi; labels has {len(self.names)} classes")
        if isinstance(self.thresholds, dict) and len(named) != 1:
            raise ValueError("thresholds of two classes names one of them, such as {spam: 0.3}")

    def _check_weights(self) -> None:
        weights = self.class_weights
        if isinstance(weights, list) and len(weights) != len(self.names):
            raise ValueError(f"class_weights has {len(weights)} numbers for {len(self.names)} classes")
        if isinstance(weights, dict) and (unknown := [name for name in weights if name not in self.names]):
            raise ValueError(
                f"class_weights has {unknown[0]!r}, which is no class; the classes: {', '.join(self.names)}"
            )
        if isinstance(weights, list | dict) and not any(self.weights_by_class or ()):
            raise ValueError("class_weights are all 0: raise the weight of some class, or leave class_weights out")

    @property
    def names(self) -> list[str]:
        """The names of the model's outputs: the classes in the order of their ids, or the targets.

        Several values may have one name.
        """
        if self.mode == "regression":
            return self.targets or ["value"]
        return list(dict.fromkeys(self.labels.values()))

    @property
    def weights_by_class(self) -> list[float] | None:
        """The weights of the classes in the order of their ids; None if there are none, or if counts decide."""
        weights = self.class_weights
        if isinstance(weights, dict):
            return [weights.get(name, 1.0) for name in self.names]
        return weights if isinstance(weights, list) else None
