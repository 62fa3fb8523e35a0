"""The loss sum of a micro-batch as the module that an engine wraps."""

from __future__ import annotations

from typing import Self

from torch import Tensor, nn

from trainer.models import loss_groups
from trainer.models.output_layer import deferred_logits
from trainer.task.base import Task
from trainer.task.micro_batches import CORPORA


class Objective(nn.Module):
    """The loss sum of a micro-batch as a module. Accelerate wraps it, so that its forward is all that a step computes.

    If the bare model were wrapped instead, Accelerate would copy all logits to fp32.
    """

    def __init__(self, task: Task, model: nn.Module, frozen: nn.Module | None = None) -> None:
        super().__init__()
        self.model = model
        self.task = task
        self._frozen = [frozen] if frozen is not None else []  # in a list: it is a part of the model already

    def train(self, mode: bool = True) -> Self:
        """Set the mode. A frozen trunk stays in eval mode: dropout in it would be noise that nothing learns from."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def forward(self, **batch: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        corpora, groups = batch.pop(CORPORA, None), loss_groups.current()
        if groups is not None and corpora is not None:
            groups.start(corpora, self.task.label_rows(batch))
        with deferred_logits(self.model):
            loss, memory = self.task.loss_and_memory(self.model, batch)
        if groups is not None:
            groups.end()
        return loss if memory is None else (loss, memory)

    @staticmethod
    def parts(output: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor | None]:
        """Return loss and memory from the output of the forward."""
        return output if isinstance(output, tuple) else (output, None)


def freeze_unused(objective: Objective) -> list[str]:
    """Freeze parameters that the loss does not depend on (unneeded heads of a pretrained model). Return their names.

    DDP would wait for their gradients, and weight decay would shrink them.
    """
    task, device, used = objective.task, next(objective.parameters()).device, set[int]()

    def drop(p: Tensor) -> None:  # all gradients together would take the memory of a model
        used.add(id(p))
        p.grad = None

    trained = [(name, p) for name, p in objective.model.named_parameters() if p.requires_grad]
    hooks = [p.register_post_accumulate_grad_hook(drop) for _, p in trained]
    objective.train()
    loss, _ = Objective.parts(objective(**{name: tensor.to(device) for name, tensor in task.filler().items()}))
    loss.backward()
    for hook in hooks:
        hook.remove()
    unused = [(name, p) for name, p in trained if id(p) not in used]
    for _, p in unused:
        p.requires_grad_(False)
    return [name for name, _ in unused]
