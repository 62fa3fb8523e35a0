"""Classes of stock libraries that compute the same as models of rankzero, and how their weights correspond.

    pooled classifier      the trunk, with the pooling and linear layer of sentence-transformers
    Transformer            Pegasus (norm: pre) or Marian (norm: post)
    encoder (norm: pre)    Megatron-BERT; as a masked language model, or with pooling as above

Projections without biases get biases of 0, and sinusoids are stored as tables of positions. Where a class does not
multiply embeddings by sqrt(d_model), they are stored multiplied, and `rankzero.safetensors` keeps them as trained.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.models.attention import MASKED
from trainer.models.classifiers import PooledClassifier
from trainer.models.cnn import CNN
from trainer.models.encoder import Encoder, MaskedLanguageModel
from trainer.models.hf_config import config_json, label_maps
from trainer.models.transformer import Transformer
from trainer.tensors import constants

Names = dict[str, list[str]]
BOTH = ("weight", "bias")
_TABLES = {  # of an encoder-decoder whose sides share no matrix
    "embedding.weight": "model.encoder.embed_tokens.weight",
    "target_embedding.weight": "model.decoder.embed_tokens.weight",
    "output.weight": "lm_head.weight",
}


@dataclass
class StockForm:
    """How a stock library stores a model.

    Attributes:
        config: config.json.
        names: of rankzero, each with the names in the stock file of its parts along the first dimension.
        fixed: tensors that only the stock class has.
        kept: names whose tensors the stock file does not hold bit for bit.
        pooling: of sentence-transformers, followed by the linear layer `head`. None: the class has its own head.
    """

    config: dict[str, Any]
    names: Names
    fixed: dict[str, Tensor] = field(default_factory=dict)
    kept: list[str] = field(default_factory=list)
    pooling: str | None = None


def stock_form(model: nn.Module, config: Mapping[str, Any], ids: Mapping[str, int | None]) -> StockForm | str:
    """Return the stock form of a model, or why there is none, as a part of a sentence.

    Args:
        model: with its trained weights.
        config: of rankzero, see `Task.model_config`.
        ids: the special tokens in a configuration: `pad_token_id`, …
    """
    if isinstance(model, Transformer):
        return _seq2seq(model, config, ids)
    if isinstance(model, PooledClassifier):
        return _pooled(model, config, ids)
    if isinstance(model, MaskedLanguageModel):
        return _masked(model, config, ids)
    if config_json(model) is None:
        return f"{type(model).__name__} is a model of rankzero, and no class of transformers computes the same"
    return StockForm(dict(config), {name: [name] for name in weights_of(model)})


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the weights of a model as a checkpoint names them, and its constants."""
    return {**{name: p.detach() for name, p in model.named_parameters()}, **constants(model)}


# -- encoder and decoder -----------------------------------------------------------------------------------------------


def _seq2seq(model: Transformer, config: Mapping[str, Any], ids: Mapping[str, int | None]) -> StockForm:
    """Return Pegasus, or Marian, whose layers are normalized after each sublayer."""
    pre, tied = config["norm"] == "pre", config["tied_embeddings"]
    vocabulary, width = model.embedding.weight.shape
    sides: list[tuple[str, nn.ModuleList]] = [("encoder", model.encoder), ("decoder", model.decoder)]
    form = StockForm({"vocab_size": vocabulary}, {"embedding.weight": ["model.shared.weight"]})
    if tied is not True:
        form = _seq2seq_embeddings(model, pre)
    names, fixed = Names(), {"final_logits_bias": torch.zeros(1, len(model.target_table.weight)), **form.fixed}
    for side, layers in sides:
        for i in range(len(layers)):
            names |= _seq2seq_layer(f"{side}.{i}.", f"model.{side}.layers.{i}.", cross=side == "decoder")
        if pre:
            names |= _both(f"{side}_norm.", f"model.{side}.layer_norm.")
        fixed[f"model.{side}.embed_positions.weight"] = model.positions.clone()
    names |= form.names
    projections = [part for parts in names.values() for part in parts if part.endswith("_proj.weight")]
    fixed |= {part.replace("weight", "bias"): torch.zeros(width) for part in projections}
    shape = {f"{side}_{key}": value for side, layers in sides for key, value in _sizes(config, len(layers)).items()}
    return StockForm(
        {
            **(
                {"model_type": "pegasus"}
                if pre
                else {"model_type": "marian", "share_encoder_decoder_embeddings": tied is True}
            ),
            "architectures": ["PegasusForConditionalGeneration" if pre else "MarianMTModel"],
            **shape,
            "d_model": width,
            **form.config,
            "max_position_embeddings": len(model.positions),
            "activation_function": config["activation"],
            "scale_embedding": True,
            "tie_word_embeddings": tied is True or (tied == "target" and not pre),
            "is_encoder_decoder": True,
            "dropout": config["dropout"],
            "attention_dropout": config["attention_dropout"],
            "activation_dropout": 0.0,
            "forced_eos_token_id": None,
            **ids,
            "dtype": "float32",
        },
        names,
        fixed,
        form.kept,
    )


def _seq2seq_embeddings(model: Transformer, pre: bool) -> StockForm:
    """Return the embeddings and the output matrix, of which none is shared by both sides.

    Pegasus has one vocabulary size, and no output that is tied to the target embedding. With separate vocabularies the
    smaller one gets rows of 0, and a token that does not exist gets a logit of MASKED.
    """
    weights, sources, targets = weights_of(model), *map(len, (model.embedding.weight, model.target_table.weight))
    rows = max(sources, targets) if pre else targets
    form = StockForm({"vocab_size": rows if pre else sources}, {})
    if targets < rows:
        form.fixed["final_logits_bias"] = F.pad(torch.zeros(1, targets), (0, rows - targets), value=MASKED)
    elif not pre and sources != targets:
        form.config["decoder_vocab_size"] = targets

    def padded(name: str) -> Tensor:
        return F.pad(weights[name], (0, 0, 0, rows - len(weights[name])))

    for name, place in _TABLES.items():
        if name in weights and pre and len(weights[name]) < rows:
            form.kept.append(name)
            form.fixed[place] = padded(name)
        elif name in weights:
            form.names[name] = [place]
    if pre:  # Pegasus has the shared table even if nothing reads it
        form.fixed["model.shared.weight"] = torch.zeros(rows, model.embedding.embedding_dim)
        if model.output is None:
            form.fixed["lm_head.weight"] = padded("target_embedding.weight").clone()
    return form


def _sizes(config: Mapping[str, Any], layers: int) -> dict[str, int]:
    return {"layers": layers, "attention_heads": config["heads"], "ffn_dim": config["feed_forward"]}


def _seq2seq_layer(ours: str, theirs: str, *, cross: bool) -> Names:
    names = {f"{ours}attention.query_key_value.weight": [f"{theirs}self_attn.{x}_proj.weight" for x in "qkv"]}
    names[f"{ours}attention.output.weight"] = [f"{theirs}self_attn.out_proj.weight"]
    names |= _both(f"{ours}attention_norm.", f"{theirs}self_attn_layer_norm.")
    if cross:
        names[f"{ours}cross_attention.query.weight"] = [f"{theirs}encoder_attn.q_proj.weight"]
        names[f"{ours}cross_attention.key_value.weight"] = [f"{theirs}encoder_attn.{x}_proj.weight" for x in "kv"]
        names[f"{ours}cross_attention.output.weight"] = [f"{theirs}encoder_attn.out_proj.weight"]
        names |= _both(f"{ours}cross_attention_norm.", f"{theirs}encoder_attn_layer_norm.")
    for mine, other in (("inner.", "fc1."), ("outer.", "fc2.")):
        names |= _both(f"{ours}feed_forward.{mine}", f"{theirs}{other}")
    return names | _both(f"{ours}feed_forward_norm.", f"{theirs}final_layer_norm.")


def _both(ours: str, theirs: str) -> Names:
    return {f"{ours}{key}": [f"{theirs}{key}"] for key in BOTH}


# -- encoders ----------------------------------------------------------------------------------------------------------


def _pooled(model: PooledClassifier, config: Mapping[str, Any], ids: Mapping[str, int | None]) -> StockForm | str:
    """Return the trunk, to which sentence-transformers adds pooling and head."""
    trunk: Any = model.trunk
    if isinstance(trunk, CNN):
        return "no class of transformers has a convolution over one-hot tokens"
    if isinstance(trunk, Encoder):
        form = _megatron(trunk, config, ids, "")
        if isinstance(form, str):
            return form
        form.config["architectures"] = ["MegatronBertModel"]
    else:
        from transformers import AutoModel

        if AutoModel._model_mapping.get(type(trunk.config), None) is not type(trunk):
            return f"{type(trunk).__name__} is a part of a model, which no Auto class of transformers loads alone"
        form = StockForm(config_json(trunk) or {}, {f"trunk.{name}": [name] for name in weights_of(trunk)})
    form.config |= label_maps(model.names)
    form.pooling = "lasttoken" if model.pooling == "cls" and model.last else model.pooling
    return form


def _masked(model: MaskedLanguageModel, config: Mapping[str, Any], ids: Mapping[str, int | None]) -> StockForm | str:
    """Return Megatron-BERT with its head. Its output matrix is the embedding as trained."""
    form = _megatron(model.trunk, config, ids, "bert.")
    if isinstance(form, str):
        return form
    if config["activation"] != "gelu":
        return (
            "a masked language model with activation=relu has gelu in its head, and no class of transformers has both"
        )
    head = "cls.predictions."
    form.config |= {"architectures": ["MegatronBertForMaskedLM"], "tie_word_embeddings": False}
    form.names |= _both("transform.", f"{head}transform.dense.") | _both("norm.", f"{head}transform.LayerNorm.")
    form.names |= {"trunk.embedding.weight": [f"{head}decoder.weight"], "bias": [f"{head}decoder.bias"]}
    form.kept.remove("trunk.embedding.weight")
    form.fixed[f"{head}bias"] = model.bias.detach().clone()
    return form


def _megatron(trunk: Encoder, config: Mapping[str, Any], ids: Mapping[str, int | None], prefix: str) -> StockForm | str:
    """Return Megatron-BERT, whose embeddings have no norm of their own, as those of `Encoder`."""
    for key, value in (("norm", "pre"), ("positions", "sinusoidal")):
        if config.get(key, value) != value:
            return f"an encoder with {key}={config[key]} has no class of transformers that computes the same"
    vocabulary, width = trunk.embedding.weight.shape
    names, embeddings = Names(), f"{prefix}embeddings."
    fixed: dict[str, Tensor] = {}
    for i in range(len(trunk.layers)):
        ours, theirs = f"trunk.layers.{i}.", f"{prefix}encoder.layer.{i}."
        own = [f"{theirs}attention.self.{name}" for name in ("query", "key", "value")]
        names[f"{ours}attention.query_key_value.weight"] = [f"{name}.weight" for name in own]
        names[f"{ours}attention.output.weight"] = [f"{theirs}attention.output.dense.weight"]
        fixed |= {f"{name}.bias": torch.zeros(width) for name in (*own, f"{theirs}attention.output.dense")}
        names |= _both(f"{ours}attention_norm.", f"{theirs}attention.ln.")
        names |= _both(f"{ours}feed_forward_norm.", f"{theirs}ln.")
        names |= _both(f"{ours}feed_forward.inner.", f"{theirs}intermediate.dense.")
        names |= _both(f"{ours}feed_forward.outer.", f"{theirs}output.dense.")
    names |= _both("trunk.norm.", f"{prefix}encoder.ln.")
    fixed[f"{embeddings}position_embeddings.weight"] = trunk.positions
    scaled = {"embedding": "word_embeddings", "type_embedding": "token_type_embeddings"}
    for mine, other in scaled.items():
        weight = trunk.get_submodule(mine).weight
        fixed[f"{embeddings}{other}.weight"] = weight.detach() * math.sqrt(width)  # type: ignore[operator]
    facts = {
        "model_type": "megatron-bert",
        "vocab_size": vocabulary,
        "hidden_size": width,
        "num_hidden_layers": len(trunk.layers),
        "num_attention_heads": config["heads"],
        "intermediate_size": config["feed_forward"],
        "hidden_act": config["activation"],
        "hidden_dropout_prob": config["dropout"],
        "attention_probs_dropout_prob": config["attention_dropout"],
        "max_position_embeddings": len(trunk.positions),
        "layer_norm_eps": 1e-5,
        **ids,
        "dtype": "float32",
    }
    return StockForm(facts, names, fixed, [f"trunk.{name}.weight" for name in scaled])
