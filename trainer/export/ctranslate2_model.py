"""A model of CTranslate2, in fp32 or int8, from the form of the model that transformers loads.

CTranslate2 scales the activations of each token: in int8 other rows of a batch change an answer by rounding only.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from ctranslate2.converters import transformers as loaders
from transformers import PreTrainedTokenizerFast

from trainer.data.target_tokenizer import target_of
from trainer.export.conversions import Conversion
from trainer.export.packaging import write_program
from trainer.task.base import Record

PRE_NORM = ("m2m_100", "pegasus")  # model_type of those that normalize before each sublayer
LOADERS = {"m2m_100": loaders.M2M100Loader, "mt5": loaders.MT5Loader, "t5": loaders.T5Loader}
OF_ARTIFACT = {"ctranslate2": ("float32", "float32"), "ctranslate2_int8": ("int8_float32", "int8_float32")}


def convert(conversion: Conversion) -> Record:
    """Convert the model. Return the result of the gate."""
    c = conversion
    stored, compute = OF_ARTIFACT[c.kind.name]
    with tempfile.TemporaryDirectory(prefix="rankzero-stock-") as scratch, torch.no_grad():
        c.rows.task.save_model(c.rows.model, Path(scratch))
        auto = getattr(transformers, c.rows.export.auto_class)
        model = auto.from_pretrained(scratch, dtype=torch.float32, trust_remote_code=False).eval()
        spec = specification(model, c.rows.task.tokenizer)
    spec.validate()
    spec.optimize(quantization=stored)
    spec.save(str(c.folder))
    write_program(c.rows.export, c.rows.model, c.folder, c.kind, compute_type=compute)
    return c.gate()


def specification(model: Any, tokenizer: PreTrainedTokenizerFast) -> Any:
    """Return the specification of a model, by the library's functions for its architecture.

    That for Marian starts from an embedding of 0, whatever the start token, and drops the last token: Marian has the
    layers of BART.
    """
    config, target = model.config, target_of(tokenizer)
    config.normalize_before = config.model_type in PRE_NORM
    config.normalize_embedding = config.model_type == "bart"
    spec = LOADERS.get(config.model_type, loaders.BartLoader)().get_model_spec(model)
    start = target.convert_ids_to_tokens(config.decoder_start_token_id)
    spec.config.bos_token = spec.config.decoder_start_token = start
    spec.config.eos_token = target.eos_token
    spec.config.unk_token = target.unk_token or "<unk>"
    _add_position(spec.decoder)
    spec.register_source_vocabulary(_vocabulary(tokenizer, model.get_input_embeddings()))
    spec.register_target_vocabulary(_vocabulary(target, model.get_output_embeddings()))
    return spec


def _add_position(decoder: Any) -> None:
    """Add a position to a table: the library scores an end after a target that fills all others."""
    table = getattr(getattr(decoder, "position_encodings", None), "encodings", None)
    if isinstance(table, torch.Tensor):
        decoder.position_encodings.encodings = torch.cat([table, torch.zeros_like(table[:1])])


def _vocabulary(tokenizer: PreTrainedTokenizerFast, table: Any) -> list[str]:
    """Return the tokens by id, one for each line of a table, which may have more than the tokenizer."""
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    return [*tokens, *(f"<unused_{i}>" for i in range(len(tokens), len(table.weight)))]
