"""Embed texts as vectors: the last hidden states of a run's trunk, or of any model of the transformers library.

Shapes: B texts, T tokens, M features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from trainer.data.token_ids import Layout, encode_batch
from trainer.data.tokenization import load_tokenizer
from trainer.engine.corpus import batches_by_length
from trainer.engine.trained_run import TrainedRun, best_device, choose_attention
from trainer.errors import UsageError
from trainer.hub_paths import check_model_files
from trainer.models.classifiers import trunk_prefix
from trainer.models.families import Padding, padding_of
from trainer.models.fast_attention import use_attention
from trainer.models.hf_config import hidden_width
from trainer.models.pooling import ends_with_summary, pool, reading_part
from trainer.models.pretrained import load_bare, position_limit
from trainer.recipe import Recipe
from trainer.rundir import RunDir
from trainer.task.base import Example

Pooling = Literal["cls", "mean", "tokens"]
POOLINGS = ("cls", "mean", "tokens")
TOKENS_PER_BATCH = 4096
WINDOW = {"cls": 512, "mean": 512, "tokens": 64}  # texts that are in memory and sorted by length together
WIDTH_MULTIPLE = 8  # of widths where possible, so that few shapes occur
UNLIMITED = 10**9  # tokenizers without a limit report a greater number


class Embedded(NamedTuple):
    """The embedding of one text."""

    text: str
    tokens: list[str]  # special ones included
    vector: np.ndarray  # fp32: (M,), or (T, M) of its tokens
    truncated: bool = False  # only a part of the text was read


@dataclass(frozen=True)
class Embedder:
    """A trunk with the encoding of its input.

    Attributes:
        trunk: returns hidden states; in eval mode.
        encode: turns texts into `input_ids` (and `token_type_ids`), truncated to what the trunk reads, and returns
            whether a text was truncated.
        tokenizer: names the tokens.
        pad_id: the padding token.
        padding: the widths of batches.
        width: M.
        last: pooling `cls` takes the last token.
        limit: padded tokens of a batch, at most.
    """

    trunk: nn.Module
    encode: Callable[[Sequence[str]], list[tuple[Example, bool]]]
    tokenizer: Any
    pad_id: int
    padding: Padding
    width: int
    last: bool = False
    limit: int = TOKENS_PER_BATCH

    @classmethod
    def of_run(cls, run: RunDir, recipe_type: type[Recipe], max_length: int | None = None) -> Embedder:
        """Return the embedder of a run, with its cleaning, tokenizer and max_length.

        Raises:
            UsageError: this is not a run directory, its task reads pairs of texts, or max_length exceeds the run's.
            CheckpointError: its model has not been written yet.
        """
        task = TrainedRun.task_of(run, recipe_type)
        if not task.embeds:
            raise UsageError(
                f"embed: {run.path} is a run of task {task.kind}, whose model does not read single texts; allowed are "
                "runs of classifiers and language models, or a pretrained model"
            )
        room = max_length or task.recipe.data.max_length
        if room > task.recipe.data.max_length:
            raise UsageError(
                f"--max-length {room}: the run was trained with data.max_length={task.recipe.data.max_length}; lower it"
            )
        trained = TrainedRun.open(run, recipe_type, [f"data.max_length={room}"])
        task, recipe, model = trained.task, trained.recipe, trained.model
        if (prefix := trunk_prefix(model)) is None:
            raise UsageError(f"embed: {type(model).__name__} of {run.path} is not divided into trunk and head")
        choose_attention(model, getattr(recipe.model, "attention", None))
        trunk = reading_part(model.get_submodule(prefix[:-1]))

        causal = getattr(recipe.task, "objective", None) == "causal"

        def encode(texts: Sequence[str]) -> list[tuple[Example, bool]]:
            # a causal language model's documents are whole; a run on pairs reads a text without a second one, too
            lines = [text if len(task.input_columns) == 1 or "\t" in text else f"{text}\t" for text in texts]
            return [
                (
                    {name: ids[:room] for name, ids in example.items()},
                    len(example["input_ids"]) > room if causal else task.truncated(text, example),
                )
                for text, example in zip(lines, task.encode_lines(lines), strict=True)
            ]

        settings: Any = recipe.model
        config = getattr(trunk, "config", None)
        width = int(settings.d_model) if config is None else hidden_width(config)
        return cls(
            trunk, encode, task.tokenizer, task.pad_id, task.padding, width,
            last=causal or ends_with_summary(trunk), limit=recipe.evaluation.tokens_per_batch,
        )  # fmt: skip

    @classmethod
    def of_model(cls, name: str, max_length: int | None = None) -> Embedder:
        """Return the embedder of a transformers model by Hub id, folder, or pkg://package/folder.

        Raises:
            UsageError: it cannot be loaded, or has fewer positions than max_length.
        """
        check_model_files(name)
        tokenizer = load_tokenizer(name)
        trunk = load_bare(name, tokenizer)
        config: Any = trunk.config
        limit = position_limit(config)
        if max_length is not None and limit is not None and max_length > limit:
            raise UsageError(f"--max-length {max_length}: {name!r} has {limit} positions; lower it")
        own = tokenizer.model_max_length if tokenizer.model_max_length < UNLIMITED else None
        room = max_length or min((n for n in (own, limit) if n is not None), default=None)
        layout = Layout.of(tokenizer, pair=False)

        def encode(texts: Sequence[str]) -> list[tuple[Example, bool]]:
            kept = None if room is None else room - layout.special
            return [
                ({"input_ids": layout.join([ids[:kept]])[0]}, kept is not None and len(ids) > kept)
                for ids in encode_batch(tokenizer, texts)
            ]

        use_attention(trunk, "sdpa")
        pad, narrow = tokenizer.pad_token_id, padding_of(config, training=False)
        wide = narrow.also(WIDTH_MULTIPLE)
        padding = wide if limit is None or (room is not None and wide.width(room) <= limit) else narrow
        last = ends_with_summary(trunk)
        return cls(trunk, encode, tokenizer, 0 if pad is None else pad, padding, hidden_width(config), last)

    @torch.no_grad()
    def __call__(self, texts: Iterable[str], pooling: Pooling = "mean") -> Iterator[Embedded]:
        """Yield one record per text, in order and in constant memory.

        With `cls`, the last token of a causal model is used: its first token attends to nothing else.
        """
        device = best_device()
        self.trunk.to(device)
        source = iter(texts)
        while window := list(islice(source, WINDOW[pooling])):
            encoded = self.encode(window)
            examples = [example for example, _ in encoded]
            vectors: dict[int, np.ndarray] = {}
            some = [i for i, e in enumerate(examples) if e["input_ids"]]  # without special ones a text may have none
            lengths = [len(examples[i]["input_ids"]) for i in some]
            for numbers in batches_by_length(lengths, self.padding.width, self.limit):
                batch = [some[number] for number in numbers]
                vectors |= dict(zip(batch, self._embed([examples[i] for i in batch], pooling, device), strict=True))
            nothing = np.zeros((0, self.width) if pooling == "tokens" else self.width, np.float32)
            for i, text in enumerate(window):
                ids = examples[i]["input_ids"] if pooling == "tokens" else []
                yield Embedded(text, self.tokenizer.convert_ids_to_tokens(ids), vectors.get(i, nothing), encoded[i][1])

    def _embed(self, examples: Sequence[Example], pooling: Pooling, device: torch.device) -> list[np.ndarray]:
        """Return a vector (M,) of each example, or (T, M) for its tokens."""
        lengths = [len(e["input_ids"]) for e in examples]
        inputs = {"input_ids": self._padded([e["input_ids"] for e in examples], self.pad_id, device)}
        inputs["attention_mask"] = mask = self._padded([[1] * n for n in lengths], 0, device)
        if "token_type_ids" in examples[0]:
            inputs["token_type_ids"] = self._padded([e["token_type_ids"] for e in examples], 0, device)
        output = self.trunk(**inputs)
        hidden = (output if isinstance(output, Tensor) else output.last_hidden_state).float()
        if pooling == "tokens":
            return [row[m > 0].cpu().numpy() for row, m in zip(hidden, mask, strict=True)]
        return list(pool(hidden, mask, pooling, self.last).cpu().numpy())

    def _padded(self, sequences: Sequence[Sequence[int]], value: int, device: torch.device) -> Tensor:
        """Return the padded sequences: (B, W) int64."""
        return torch.tensor(self.padding.rows(sequences, value), dtype=torch.int64, device=device)
