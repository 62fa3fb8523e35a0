"""rankzero: trains Transformers on any number of ranks and ships them from rank zero.

from trainer import train
run = train("multi30k", overrides=["data.root=PATH/multi30k"])
"""

from __future__ import annotations

import importlib
import logging
import os
from typing import Any

# Results must not depend on the number of threads or on memory alignment (docs/explanation/steps.md). MKL reads its
# variable at its first call, so it is set before torch is imported.
# Kernels of the Hub are code that a config.json can ask for. NNCF and onnxruntime send usage statistics unless a
# variable is set; onnxruntime also leaves a file in the temporary directory.
ENVIRONMENT = {
    "MKL_CBWR": "AUTO,STRICT",
    "TOKENIZERS_PARALLELISM": "false",
    "USE_HUB_KERNELS": "NO",
    "NNCF_CI": "1",
    "ORT_DISABLE_TELEMETRY": "1",
}
for _name, _value in ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)

# torchao, which transformers imports where it is installed, warns of kernels for other devices and of a deprecation.
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)

_MODULES = {  # of other names: trainer.api
    "Callback": "trainer.engine.callbacks",
    "Recipe": "trainer.recipe_loading",
    "embed": "trainer.embedding",
    "track": "trainer.tracking.upload",
}

__all__ = ["Callback", "Recipe", "embed", "evaluate", "predict", "track", "train"]


def __getattr__(name: str) -> Any:
    """Import a public function when it is used: `rankzero --help` must not wait for torch."""
    if name not in __all__:
        raise AttributeError(f"module 'trainer' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES.get(name, "trainer.api")), name)
