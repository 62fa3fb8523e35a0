"""Check how a sharded training starts: its weights, and the memory of each rank. hooks.py describes how hooks work."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from hooks import peak_of_trace

DTYPES = {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}


def check_start(path: Path) -> None:
    """Compare the weights of ZeRO-3 at the start with a model that is built as usual, and write what was compared.

    Also those that it computes with, and that an own part comes back from a complete weight.
    """
    import deepspeed
    import torch

    from trainer.engine import session as module
    from trainer.engine.session import Session

    init, deferred, recorded = Session.__init__, module.deferred, []

    def recording(*arguments: Any) -> Any:
        found = deferred(*arguments)
        recorded.append(found is not None)
        return found

    def made(self: Session, *arguments: Any, **named: Any) -> None:
        init(self, *arguments, **named)
        engine: Any = self.runtime.engine
        assert all(p.is_meta for p in self.model.parameters())
        dtype = getattr(torch, DTYPES[engine.accelerator.mixed_precision])
        with torch.random.fork_rng():
            expected = {name: p.detach() for name, p in module.build_model(self.task, check=False).named_parameters()}
        parameters = dict(engine.parameters())
        assert parameters.keys() == expected.keys()
        rounded = 0
        for name, p in parameters.items():
            whole = engine.weight(p)
            assert whole.dtype == torch.float32
            assert torch.equal(whole, expected[name]), name
            assert torch.equal(engine.part_of(p, whole), engine.own_part(p)), name
            assert p.ds_tensor.dtype == dtype, name
            with deepspeed.zero.GatheredParameters([p]):
                assert torch.equal(p.detach(), whole.to(dtype)), name
            rounded += int((whole.to(dtype).float() != whole).sum())
        frozen = sum(not p.requires_grad for p in parameters.values())
        seen = {"names": len(parameters), "frozen": frozen, "rounded": rounded, "recorded": recorded == [True]}
        path.with_name(f"{path.name}-{os.environ['RANK']}").write_text(json.dumps(seen))

    module.deferred = recording  # type: ignore[assignment]
    Session.__init__ = made  # type: ignore[method-assign, assignment]


def memory_of_phases(path: Path, *, complete: bool = False) -> None:
    """Each rank writes the most bytes of tensors in the set-up and in an evaluation, besides those before each.

    `complete` is a control: the model is built completely before it is sharded, and evaluated as a complete model.
    """
    from torch.profiler import ProfilerActivity, profile

    from trainer.engine import session as module
    from trainer.engine import state as state_module
    from trainer.engine.layerwise import fill_skeleton
    from trainer.engine.session import Session

    peaks: dict[str, int] = {}

    def measured(phase: str, run: Any) -> Any:
        def wrapped(self: Any, *arguments: Any, **named: Any) -> Any:
            with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
                result = run(self, *arguments, **named)
            trace = path.with_name(f"{phase}-{os.environ['RANK']}.trace")
            recorded.export_chrome_trace(str(trace))
            peaks[phase] = peak_of_trace(trace)
            peaks["parameters"] = sum(p.numel() * 4 for p in self.model.parameters())
            path.with_name(f"{path.name}-{os.environ['RANK']}").write_text(json.dumps(peaks))
            return result

        return wrapped

    Session.__init__ = measured("start", Session.__init__)  # type: ignore[method-assign]
    Session.evaluate = measured("evaluation", Session.evaluate)  # type: ignore[method-assign]
    if complete:
        module.deferred = lambda *_: None  # type: ignore[assignment]

        class Filled(state_module.LayerServer):
            def attached(self) -> Any:
                fill_skeleton(self._model, lambda name: self._weight(name).clone())
                return super().attached()

        state_module.LayerServer = Filled  # type: ignore[misc]
