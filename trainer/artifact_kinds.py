"""The artifacts that a recipe can ask for, in one table. No torch here."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Runtime:
    """What runs an artifact.

    Attributes:
        packages: of the Python Package Index, besides tokenizers and numpy.
        modules: that these packages import, besides those of tokenizers and numpy.
    """

    packages: tuple[str, ...]
    modules: tuple[str, ...]


TORCH = "torch"
RUNTIMES = {
    TORCH: Runtime(("torch", "transformers"), ()),  # a folder that transformers loads; it has no run.py
    "onnxruntime": Runtime(("onnxruntime",), ("onnxruntime",)),
    "openvino": Runtime(("openvino",), ("openvino", "openvino_telemetry")),
    "ctranslate2": Runtime(("ctranslate2",), ("ctranslate2", "yaml", "_yaml", "pkg_resources", "setuptools")),
}


@dataclass(frozen=True)
class Kind:
    """An artifact: `export.<name>` in a recipe, export/<name>/ in a run.

    Attributes:
        what: it is, in the tables of speeds.
        runtime: a key of RUNTIMES.
        exact: whether its answers must be those of the weights. Others may lose a little quality.
        logit_limit: the key of `export.gates` that limits differences of logits. Empty: they are only reported.
        from_graphs: whether it is made from the fp32 graphs of export/onnx.
        own_search: whether its runtime searches for texts by different rules.
        one_by_one: whether the answer of a row depends on its batch, so that rows are answered one by one.
        device: for which it is made.
        extra: of `pip install 'rankzero[…]'` that makes it.
        modules: of that extra.
    """

    name: str
    what: str
    runtime: str
    exact: bool = False
    logit_limit: str = ""
    from_graphs: bool = False
    own_search: bool = False
    one_by_one: bool = False
    device: str = "cpu"
    extra: str = ""
    modules: tuple[str, ...] = ()

    @property
    def graphs(self) -> bool:
        """Whether it needs the graphs of an exporter: it is export/onnx, or made from it."""
        return self.name == ONNX or self.from_graphs

    @property
    def missing(self) -> str:
        """Return what to install before it can be made, or nothing."""
        lacking = [module for module in self.modules if importlib.util.find_spec(module) is None]
        return f"{', '.join(lacking)} not installed: pip install 'rankzero[{self.extra}]'" if lacking else ""


ONNX = "onnx"
ORT = "onnxruntime"


def _exact(name: str, what: str, runtime: str, **more: Any) -> Kind:
    return Kind(name, what, runtime, exact=True, logit_limit="logits", **more)


OPENVINO: dict[str, Any] = {"from_graphs": True, "extra": "openvino"}
CTRANSLATE2: dict[str, Any] = {"own_search": True, "extra": "ctranslate2", "modules": ("ctranslate2",)}


KINDS = {
    kind.name: kind
    for kind in (  # in the order in which they are made
        Kind("bf16", "the same in bf16", TORCH),
        _exact("safetensors", "the same from export/safetensors", TORCH),
        _exact(ONNX, "onnxruntime, fp32", ORT),
        Kind("int8", f"{ORT}, int8, text by text, as `predict` and run.py do", ORT, from_graphs=True, one_by_one=True),
        Kind("fp16", "onnxruntime, fp16", ORT, logit_limit="fp16_logits", from_graphs=True, device="cuda"),
        _exact("openvino", "OpenVINO, fp32", "openvino", modules=("openvino",), **OPENVINO),
        Kind("openvino_int8", "OpenVINO, int8", "openvino", modules=("openvino", "nncf"), **OPENVINO),
        # its numbers are those of the weights, its texts those of another search
        Kind("ctranslate2", "CTranslate2, fp32", "ctranslate2", logit_limit="logits", **CTRANSLATE2),
        Kind("ctranslate2_int8", "CTranslate2, int8", "ctranslate2", **CTRANSLATE2),
    )
}
WEIGHTS = tuple(kind.name for kind in KINDS.values() if kind.runtime == TORCH)
