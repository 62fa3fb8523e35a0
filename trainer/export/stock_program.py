"""Compute the outputs of a published model with stock libraries. Reads a job as JSON from stdin, and prints JSON.

This file runs in a separate process, in which rankzero cannot be imported. Jobs are those of trainer.export.model_gate,
and with "adapter" those of trainer.export.adapter.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Return the results of a job."""
    if "adapter" in job:
        return adapted(job)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    folder, found = job["folder"], dict[str, Any]()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    auto = getattr(transformers, job["class"])
    model = auto.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False).eval()
    found["model"] = type(model).__name__
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(job["pad_id"])
    with torch.no_grad():
        found["batches"] = [outputs(job, model, tokenizer, batch) for batch in job["batches"]]
    if job.get("generate"):
        separate = {"subfolder": "target"} if Path(folder, "target").is_dir() else {}
        target = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **separate)
        found["generated"] = [generated(model, tokenizer, target, **row) for row in job["generate"]]
    if job.get("pipeline"):
        found["pipeline"] = piped(job, model, tokenizer)
    if job.get("sentence_transformers"):
        found["sentence_transformers"] = embedded(folder, job["sentence_transformers"])
    return found


def outputs(job: dict[str, Any], model: Any, tokenizer: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """Return the token ids that the tokenizer gives, and the outputs: logits of classes, or probabilities of labels."""
    inputs = encoded(tokenizer, batch)
    ids = [row[mask > 0].tolist() for row, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)]
    if "labels" not in batch:
        logits = pooled(job, model, inputs) if job.get("pooling") else model(**inputs).logits
        return {"ids": ids, "outputs": logits.tolist()}
    width = max(map(len, batch["labels"]))
    labels = torch.tensor([row + [-100] * (width - len(row)) for row in batch["labels"]])
    if "input_ids" in batch:  # of a language model, whose masks and pieces no tokenizer makes
        rows = batch["input_ids"]
        inputs = {
            "input_ids": torch.tensor([row + [job["pad_id"]] * (width - len(row)) for row in rows]),
            "attention_mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows]),
        }
    else:
        start = torch.full((len(labels), 1), model.config.decoder_start_token_id)
        before = labels[:, :-1].masked_fill(labels[:, :-1] < 0, job["pad_id"])
        inputs["decoder_input_ids"] = torch.cat([start, before], 1)
    shares = model(**inputs).logits.float().softmax(-1).gather(2, labels.clamp(min=0)[..., None])[..., 0]
    return {"ids": ids, "outputs": [row[mask].tolist() for row, mask in zip(shares, labels >= 0, strict=True)]}


def encoded(tokenizer: Any, batch: dict[str, Any]) -> Any:
    texts = [list(sides) for sides in zip(*batch["texts"], strict=True)]
    if "width" not in batch:
        return tokenizer(*texts, truncation=True, padding=True, return_tensors="pt")
    inputs = tokenizer(*texts, truncation=True)
    return tokenizer.pad(inputs, padding="max_length", max_length=batch["width"], return_tensors="pt")


def pooled(job: dict[str, Any], model: Any, inputs: Any) -> Any:
    """Apply the pooling and the linear layer of a classifier to the states of its trunk, as the model card shows."""
    states, mask = model(**inputs).last_hidden_state, inputs["attention_mask"]
    if job["pooling"] == "mean":
        vectors = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    elif job["pooling"] == "max":
        vectors = states.masked_fill(mask[..., None] == 0, -1e9).amax(1)
    elif job["pooling"] == "cls":
        vectors = states[:, 0]
    else:
        last = (mask * torch.arange(mask.shape[1])).argmax(1)
        vectors = states[torch.arange(len(states)), last]
    head = load_file(f"{job['folder']}/2_Dense/model.safetensors")
    return vectors @ head["linear.weight"].float().T + head["linear.bias"].float()


def generated(model: Any, tokenizer: Any, target: Any, text: str, limit: int) -> str:
    inputs = tokenizer([text], truncation=True, return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=limit)[0]
    start = 0 if model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
    return target.decode(ids[start:], skip_special_tokens=True)


def piped(job: dict[str, Any], model: Any, tokenizer: Any) -> list[Any]:
    """Return the scores of each text by label, by the pipeline."""
    options = {"model": model, "tokenizer": tokenizer}
    pipe = transformers.pipeline(job["pipeline"]["task"], **options, trust_remote_code=False)
    texts = [dict(zip(("text", "text_pair"), sides, strict=False)) for sides in job["pipeline"]["texts"]]
    found = [pipe(text, top_k=None, truncation=True) for text in texts]
    return [{entry["label"]: entry["score"] for entry in entries} for entries in found]


def embedded(folder: str, texts: list[Any]) -> list[Any]:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(folder, device="cpu", trust_remote_code=False)
    return model.encode([sides[0] for sides in texts], show_progress_bar=False).tolist()


def adapted(job: dict[str, Any]) -> dict[str, Any]:
    """Write the outputs of an adapter on its base, by stock PEFT: for each file of inputs, under its number."""
    from peft import PeftModel

    options = {"revision": job["revision"], "dtype": torch.float32, **job["arguments"]}
    base = getattr(transformers, job["class"]).from_pretrained(job["base"], **options, trust_remote_code=False)
    model = PeftModel.from_pretrained(base, job["adapter"], trust_remote_code=False).eval()
    outputs = {}
    for number, file in enumerate(job["inputs"]):
        with torch.no_grad():
            output = model(**load_file(file), **job["options"])
        outputs[str(number)] = (output.logits if "logits" in output else output.last_hidden_state).contiguous()
    save_file(outputs, job["outputs"])
    return {}


if __name__ == "__main__":
    json.dump(run(json.load(sys.stdin)), sys.stdout)
