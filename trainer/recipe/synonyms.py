"""Map the names that other trainers use for a setting to recipe keys, for the hint after an unknown key."""

from __future__ import annotations

_PLACES = {
    "data.rows_per_batch (rows) or data.tokens_per_batch (padded tokens) of a micro-batch; "
    "a step takes one micro-batch from each of data.lanes lanes": (
        "batch_size", "train_batch_size", "per_device_train_batch_size", "per_gpu_batch_size", "micro_batch_size",
        "train_micro_batch_size_per_gpu", "global_batch_size",
    ),
    "nothing to set: out of memory splits the micro-batches and keeps the step": ("auto_find_batch_size",),
    "data.lanes (micro-batches of a step; accumulation follows from lanes and ranks)": (
        "accumulation", "accumulation_steps", "accumulate_grad_batches", "gradient_accumulation",
        "gradient_accumulation_steps", "grad_accum", "grad_accumulation_steps", "update_freq", "batch_multiplier",
    ),
    "evaluation.tokens_per_batch": ("eval_batch_size", "per_device_eval_batch_size", "val_batch_size"),
    "optim.lr": ("learning_rate", "lr", "learning_rate_init", "max_lr", "peak_lr"),
    "optim.schedule": ("lr_scheduler", "lr_scheduler_type", "scheduler", "scheduling", "lr_schedule"),
    "optim.warmup_steps": ("num_warmup_steps",),
    "optim.warmup_steps or optim.warmup_ratio": ("warmup", "lr_warmup", "learning_rate_warmup"),
    "optim.weight_decay": ("wd", "decay", "weight_decay_rate", "l2"),
    "nothing to set: biases and norms have no weight decay": ("no_decay", "no_weight_decay", "decay_parameters"),
    "optim.clip_norm": (
        "max_grad_norm", "gradient_clip_val", "gradient_clipping", "clip_grad", "clip_grad_norm", "grad_clip",
        "gradient_clip_algorithm",
    ),
    "optim.betas": ("adam_beta1", "adam_beta2", "adam_betas"),
    "optim.eps": ("adam_epsilon", "adam_eps", "epsilon"),
    "optim.name": ("optimizer", "optim_name", "optimizer_name"),
    "optim.label_smoothing": ("label_smoothing_factor", "smoothing"),
    "optim.layer_decay": ("layerwise_lr_decay", "llrd", "layer_lr_decay"),
    "optim.groups": ("param_groups", "parameter_groups", "no_decay_parameters"),
    "optim.freeze_layers": ("frozen_layers", "num_frozen_layers"),
    "optim.freeze_trunk": ("freeze", "freeze_encoder", "freeze_base_model", "freeze_backbone"),
    "optim.averaging": ("ema", "swa", "ema_decay", "averaging"),
    "loop.epochs": ("num_epochs", "num_train_epochs", "max_epochs", "n_epochs"),
    "loop.max_steps": ("max_train_steps", "num_steps", "total_steps", "max_updates", "training_steps", "updates"),
    "loop.eval_every": ("eval_steps", "evaluation_strategy", "eval_strategy", "val_check_interval", "validation_freq"),
    "loop.eval_first": ("eval_on_start", "evaluate_first", "num_sanity_val_steps"),
    "evaluation.metrics": ("compute_metrics",),
    "--debug of the command line": ("fast_dev_run", "limit_train_batches", "overfit_batches"),
    "loop.save_every": ("save_steps", "save_strategy", "checkpoint_every", "save_freq", "checkpointing_steps"),
    "loop.log_every": ("logging_steps", "log_every_n_steps", "logging_freq", "log_interval"),
    "loop.keep": ("save_total_limit", "keep_best_ckpts", "save_top_k", "keep_last_ckpts"),
    "loop.early_stopping": ("early_stop", "load_best_model_at_end"),
    "loop.early_stopping.patience": ("patience", "early_stopping_patience"),
    "loop.early_stopping.metric": ("metric_for_best_model", "monitor", "early_stopping_metric"),
    "loop.activation_checkpointing": ("gradient_checkpointing", "activation_checkpoint"),
    "loop.compile": ("torch_compile", "jit"),
    "loop.tf32": ("allow_tf32",),
    "data.max_length": ("max_seq_length", "max_seq_len", "max_sent_length", "max_len", "seq_length", "block_size"),
    "data.columns": ("text_column", "label_column", "column_names", "column_mapping", "fields"),
    "data.train": ("train_file", "train_files", "training_file", "train_path", "train_dataset"),
    "data.validation": ("validation_file", "dev", "dev_file", "eval_file", "valid", "validation_split", "val", "eval"),
    "data.test": ("test_file",),
    "data.root": ("dataset", "dataset_name", "data_dir", "data_path", "path"),
    "data.workers": ("num_workers", "dataloader_num_workers", "num_proc", "preprocessing_num_workers"),
    "data.prefetch": ("prefetch_factor", "dataloader_prefetch_factor"),
    "data.order": ("shuffle", "shuffling"),
    "model.name": ("model_name", "model_name_or_path", "pretrained_model", "checkpoint", "pretrained"),
    "model.adapter": ("peft", "peft_config", "lora", "lora_config", "use_peft", "use_lora", "use_dora", "adapters"),
    "model.adapter.rank": ("lora_r", "lora_rank"),
    "model.adapter.alpha": ("lora_alpha",),
    "model.adapter.dropout": ("lora_dropout",),
    "model.adapter.targets": ("target_modules", "lora_target_modules", "lora_target"),
    "model.init_from": ("resume_from", "load_model"),
    "task.labels": ("num_labels", "num_classes", "classes", "label_names", "id2label"),
    "tokenizer.pretrained": ("tokenizer_name", "tokenizer_name_or_path"),
    "seed": ("random_seed", "data_seed", "manual_seed"),
    "track": (
        "report_to", "logger", "loggers", "tracker", "trackers", "log_with", "tensorboard", "wandb", "mlflow",
        "wandb_project", "run_name",
    ),
    "--config NAME of the command line, such as --config ddp_bf16 (precision and engine are not in a recipe)": (
        "fp16", "bf16", "amp", "precision", "mixed_precision", "deepspeed", "fsdp", "strategy", "accelerator",
        "use_cuda", "use_cpu", "no_cuda", "ddp", "half_precision", "half", "device",
    ),
    "--nproc N of the command line": (
        "num_processes", "nproc", "nproc_per_node", "world_size", "n_gpu", "devices", "gpus",
    ),
    "--run DIR of the command line": ("output_dir", "default_root_dir", "model_dir", "logging_dir", "save_dir", "run"),
    "nothing to set: the same command resumes the run": ("resume", "resume_from_checkpoint", "ckpt_path", "overwrite"),
    "hf upload OWNER/NAME RUN/model after the training": ("push_to_hub", "hub_model_id", "hub_token"),
    "launch.time": ("walltime", "time_limit"),
    "launch.gpus_per_node": ("gres", "num_gpus", "gpus_per_node"),
    "launch.cpus_per_task": ("cpus", "num_cpus"),
    "launch.nodes": ("num_nodes", "num_machines"),
    "evaluation.beam_size": ("num_beams", "beam", "beams"),
    "evaluation.length_penalty": ("beam_alpha", "alpha"),
    "evaluation.generation.new_tokens": ("max_new_tokens", "max_output_length", "max_target_length"),
}  # fmt: skip
_KEYS = {word: place for place, words in _PLACES.items() for word in words}


def advice(name: str) -> str | None:
    """Return what to use instead of another trainer's `name`, or None if the name is not known."""
    place = _KEYS.get(name.lower().replace("-", "_"))
    return place if place is None or place.startswith("nothing to set") else f"use {place}"
