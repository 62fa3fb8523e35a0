"""Every encoder that has a graph passes the gate of ONNX: at other lengths, masks and batches than were traced."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from export_helpers import exported, load
from gate_helpers import quiet
from slow import slow_except
from test_encoders import FAMILIES
from test_export_families import family_run

from trainer.export import gates
from trainer.export.gates import Gate
from trainer.export.quantize import matrices, write_quantized

EXPORTED: dict[str, dict[str, Any]] = {
    **{name: FAMILIES[name] for name in ("roberta", "distilbert", "albert", "electra", "deberta-v2", "modernbert")},
    "bert": {},
    "xlnet": {},  # padded on the left
    "big_bird": {"attention_type": "original_full"},
    "gpt2": {},
    "modernbert mean": FAMILIES["modernbert"],  # rotated positions below a head of ours
}
NO_ATTENTION = ("deberta-v2", "xlnet", "big_bird")  # which the library itself computes in steps


@pytest.mark.parametrize("family", slow_except(EXPORTED, "roberta", "xlnet"))
def test_an_encoder_passes_the_gate(
    family: str, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gates, "in_fresh_process", lambda folder, lines, **_: (list(load(folder)(lines)), 0.0))
    family, _, pooling = family.partition(" ")
    monkeypatch.setitem(FAMILIES, family, EXPORTED[family])
    made = exported(family_run(tmp_path, reviews, family, pooling, data={"max_length": 96}))
    rows, answered = made.rows()
    run_gate = Gate("onnx", made.folder, rows, answered, quiet).run()
    assert run_gate["passed"], run_gate
    checks = run_gate["checks"]
    assert checks["logits"]["largest_difference"] <= 2e-5
    assert checks["logits"]["lengths"][1] > 2 * checks["logits"]["lengths"][0]
    assert checks["classes"]["rows_beyond_margin"] > 20, "the rows decide something"

    export, examples = made.export, [row.example for row in answered[:7]]
    one = [{**examples[0], "input_ids": examples[0]["input_ids"][:1]}]  # the shortest there can be
    for batch in (one, examples, [*examples[1:3], *one]):
        ours = export.torch_logits(made.finished.model, batch)
        for a, b in zip(export.artifact_logits(made.artifact, batch), ours, strict=True):
            np.testing.assert_allclose(a, b, atol=2e-5)

    used = {node.op_type for node in onnx.load(made.folder / "model.onnx").graph.node}
    assert ("Attention" in used) == (family not in NO_ATTENTION)
    (tmp_path / "int8").mkdir()
    write_quantized(made.export, made.folder, tmp_path / "int8")
    assert not matrices(tmp_path / "int8")
    found = Gate("int8", tmp_path / "int8", rows, answered, quiet).run()
    assert set(found["failed"]) <= {"accuracy"}, "of random weights int8 may cost more than its limit"
