"""Tiny models of every text family of the transformers library, built from random weights."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.models.auto import modeling_auto as auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from trainer.models.configs import PretrainedConfig
from trainer.models.hf_config import dropout_keys
from trainer.models.sizes import random_config

TOKENS = 40
LENGTH = 12
# The first class that a family has is compared. All of them share the layers.
MAPPINGS = {
    "AutoModelForCausalLM": auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "AutoModelForSeq2SeqLM": auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    "AutoModelForSequenceClassification": auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "AutoModelForMaskedLM": auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    "AutoModel": auto.MODEL_MAPPING_NAMES,
}
# What `make test` takes of the families.
FEW = ("bart", "bert", "deepseek_v32", "gemma2", "gpt2", "gpt_oss", "llama", "modernbert", "roberta", "t5")
MODALITIES = ("vision", "audio", "speech", "image", "video", "acoustic", "encoder_config", "vq", "timm", "thinker")
# Keys that make a family small, where it has them; `size: tiny` knows width, layers and heads.
SMALL: dict[str, Any] = {
    "num_key_value_heads": 1, "head_dim": 32, "sliding_window": 4, "attention_window": 4, "local_attention": 4,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32, "n_group": 1, "topk_group": 1, "moe_k": 2,
    "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "v_head_dim": 16,
    "vocab_size_per_layer_input": 40, "ngram_vocab_size_ratio": 2,
}  # fmt: skip
LATENT_FAMILIES = (
    "axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa", "minicpm3",
    "mistral_large4_text", "youtu",
)  # fmt: skip
LATENT = {"num_key_value_heads": 2, "head_dim": 16}  # keys and values from a latent vector, one for each head


def _rope(*sections: int) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": list(sections)}}


CHANGES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(LATENT_FAMILIES, LATENT),
    **dict.fromkeys(
        ["glm4v_text", "glm_image_text", "glm_ocr_text", "qwen2_vl_text", "qwen2_5_vl_text"], _rope(4, 6, 6)
    ),
    "cosmos3_edge_text": {"head_dim": 32, **_rope(4, 6, 6)},
    "glm4v_moe_text": _rope(2, 3, 3),
    "diffllama": {"num_key_value_heads": 2},
    "codegen": {"n_head": 4, "rotary_dim": 16},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 4},
    "gptj": {"rotary_dim": 16},
    "mamba2": {"num_heads": 4, "head_dim": 32, "state_size": 16, "n_groups": 1},
    "dots1": {"n_shared_experts": 1},
    "dots3_note_text": {"num_key_value_heads": 2},
    "esmc": {"num_key_value_heads": 2},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "glm5_next_text": {"num_key_value_heads": 2},
    "granitemoehybrid": {"layer_types": ["full_attention", "full_attention"]},
    "longcat_flash": {
        **LATENT,
        "ffn_hidden_size": 64,
        "expert_ffn_hidden_size": 32,
        "zero_expert_num": 2,
        "moe_topk": 2,
    },
    "lfm2_moe": {"layer_types": ["full_attention", "conv"]},
    "lfm3": {"layer_types": ["full_attention", "full_attention"]},
    "mistral4": {"num_key_value_heads": 2},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "xmod": {"default_language": "en_XX"},
    "zaya": {"num_experts_per_tok": 1},
}


class Tokenizer:
    """The ids that a configuration asks a tokenizer for."""

    pad_token_id, bos_token_id, eos_token_id, cls_token_id, sep_token_id = 0, 1, 2, 1, 2

    def __len__(self) -> int:
        return TOKENS


def families() -> dict[str, str]:
    """model_type -> the auto class that builds it."""
    found: dict[str, str] = {}
    for name, mapping in MAPPINGS.items():
        for family in mapping:
            found.setdefault(family, name)
    return dict(sorted(found.items()))


def text_families() -> dict[str, str]:
    """Families with a head for text, and the text halves of models that read more than text."""
    every = families()
    return {name: kind for name, kind in every.items() if kind != "AutoModel" or name.endswith(("_text", "text_model"))}


def model_class(family: str, auto_class: str) -> Any:
    """The library's class, None where it reads no text or cannot be imported here."""
    kind = CONFIG_MAPPING[family]
    if any(part in name for name in kind.sub_configs for part in MODALITIES):
        return None
    try:
        found = getattr(transformers, auto_class)._model_mapping[kind]
    except (ImportError, KeyError):
        return None
    found = found[0] if isinstance(found, tuple) else found
    return found if found.main_input_name == "input_ids" else None


def tiny_model(family: str, auto_class: str, **changes: Any) -> Any:
    """In training mode, without dropout, with weights so large that attention is far from uniform."""
    keys = CONFIG_MAPPING[family]().to_dict()
    config = {key: value for key, value in SMALL.items() if key in keys and value is not None}
    config |= CHANGES.get(family, {}) | changes
    settings = PretrainedConfig(architecture=family, size="tiny", config=config, dropout=0.0)
    made = random_config(settings, Tokenizer(), LENGTH)  # type: ignore[arg-type]
    made.update({key: 0.0 for key in dropout_keys(made) if key != "token_dropout"})
    torch.manual_seed(0)
    model = getattr(transformers, auto_class).from_config(made, attn_implementation="eager").float().train()
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.normal_(std=1.5 * p.shape[-1] ** -0.5)
            else:
                p.add_(torch.randn_like(p) * 0.1)
    return model


def batch_of(model: Any) -> dict[str, Tensor]:
    """Three rows of LENGTH tokens: without padding, padded on the right, padded on the left."""
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(3, TOKENS, (3, LENGTH), generator=draw)
    mask = torch.ones_like(ids)
    mask[1, -4:] = mask[2, :3] = 0
    ids[mask == 0] = Tokenizer.pad_token_id
    batch = {"input_ids": ids, "attention_mask": mask}
    if model.config.is_encoder_decoder:
        batch["decoder_input_ids"] = torch.randint(3, TOKENS, (3, LENGTH - 2), generator=draw)
    return batch


def outcome(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """What the model gives at real tokens, and the gradient of a fixed projection of it by name of the parameter."""
    torch.manual_seed(2)
    model.zero_grad()
    output = model(**batch)
    found = output.logits if getattr(output, "logits", None) is not None else output[0]
    if not model.config.is_encoder_decoder and found.dim() == 3:
        found = found[batch["attention_mask"] > 0]
    projection = torch.randn(found.shape, generator=torch.Generator().manual_seed(3))
    (found * projection).mean().backward()
    return found.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
