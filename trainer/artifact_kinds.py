"""The artifacts that a recipe can ask for, in one table. No torch here."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass


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
        exact: whether it must give the numbers of the weights. Others may lose a little quality.
        limits: keys of `export.gates` besides those of all exact, or of all other artifacts.
        from_graphs: whether it is made from the fp32 graphs of export/onnx.
        own_search: whether its runtime searches for texts by rules of its own.
        one_by_one: whether the answer of a row depends on its batch, so that rows are answered one by one.
        device: for which it is made.
        extra: of `pip install 'rankzero[…]'` that makes it.
        modules: of that extra.
    """

    name: str
    what: str
    runtime: str
    exact: bool = False
    limits: tuple[str, ...] = ()
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


def _openvino(name: str, what: str, *modules: str, exact: bool) -> Kind:
    return Kind(name, what, "openvino", exact, from_graphs=True, extra="openvino", modules=("openvino", *modules))


def _ctranslate2(name: str, what: str, *, exact: bool) -> Kind:
    of = "ctranslate2"
    return Kind(name, what, of, exact, own_search=True, extra=of, modules=(of,))


KINDS = {
    kind.name: kind
    for kind in (  # in the order in which they are made
        Kind("bf16", "the same in bf16", TORCH),
        Kind("safetensors", "the same from export/safetensors", TORCH, exact=True),
        Kind(ONNX, "onnxruntime, fp32", ORT, exact=True),
        Kind("int8", f"{ORT}, int8, text by text, as `predict` and run.py do", ORT, from_graphs=True, one_by_one=True),
        Kind("fp16", "onnxruntime, fp16", ORT, limits=("fp16_logits",), from_graphs=True, device="cuda"),
        _openvino("openvino", "OpenVINO, fp32", exact=True),
        _openvino("openvino_int8", "OpenVINO, int8", "nncf", exact=False),
        _ctranslate2("ctranslate2", "CTranslate2, fp32", exact=True),
        _ctranslate2("ctranslate2_int8", "CTranslate2, int8", exact=False),
    )
}
WEIGHTS = tuple(kind.name for kind in KINDS.values() if kind.runtime == TORCH)
