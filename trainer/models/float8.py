"""Linear layers that multiply in fp8 while a model trains, by torchao's Float8Linear with one scale for each tensor.

Parameters keep their names, dtype and storage, so checkpoints, optimizer and artifacts are those of any other
precision. Outside of training the layers multiply as before. docs/how-to/speed.md says which GPUs can do it.
"""

from __future__ import annotations

import logging

from torch import Tensor, nn
from torch.nn import functional as F
from torchao.float8 import Float8LinearConfig, convert_to_float8_training
from torchao.float8.float8_linear import Float8Linear

from trainer.errors import UsageError
from trainer.models.layers import stacks_of

MULTIPLE = 16  # of both dimensions of a weight: the kernels take no others

log = logging.getLogger("rankzero")


class TrainedInFloat8(Float8Linear):  # type: ignore[misc]
    """A layer that multiplies in fp8 in training, and as `nn.Linear` in evaluations and exports."""

    def forward(self, input: Tensor) -> Tensor:
        if self.training:
            result: Tensor = super().forward(input)
            return result
        return F.linear(input, self.weight, self.bias)


def convert_layers(model: nn.Module, *, emulate: bool) -> int:
    """Let the trained linear layers of the model's module lists multiply in fp8. Return their number.

    Embeddings, output layer and heads stay as they are, and so do frozen layers and those with a dimension that is not
    a multiple of 16.

    Args:
        emulate: round to fp8 and multiply in the precision around it, on any device: for tests.

    Raises:
        UsageError: the model has no such layer.
    """
    stacks = tuple(stacks_of(model))
    inside = [m for name, m in model.named_modules() if name.startswith(stacks) and type(m) is nn.Linear]
    chosen = {m for m in inside if m.weight.requires_grad and not any(size % MULTIPLE for size in m.weight.shape)}
    if not chosen:
        raise UsageError(
            f"fp8: no linear layer of {type(model).__name__} can multiply in fp8: {len(inside)} are in its repeated "
            f"layers, and none is trained with dimensions that are multiples of {MULTIPLE}; use --config ddp_bf16"
        )
    settings = Float8LinearConfig(pad_inner_dim=True, emulate=emulate)  # a micro-batch has any number of tokens
    convert_to_float8_training(model, module_filter_fn=lambda module, _: module in chosen, config=settings)
    for module in model.modules():
        if type(module) is Float8Linear:
            module.__class__ = TrainedInFloat8
    log.info("fp8: %d of %d linear layers in the repeated layers multiply in fp8", len(chosen), len(inside))
    return len(chosen)
