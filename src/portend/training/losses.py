"""What training minimizes: one loss over several exit branches.

Axes: E exit branches, B batch, K classes.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

__all__ = ["exit_losses"]


def exit_losses(
    logits: Tensor, labels: Tensor, *, label_smoothing: float = 0.0, distillation: float = 0.0, temperature: float = 1.0
) -> Tensor:
    """Return the loss of each exit branch, [E], as means over the batch, for logits [E, B, K] and labels int64 [B].

    Each loss is a cross-entropy H. With a ``distillation`` weight λ > 0, the losses of all but the last branch are
    (1-λ)·H + λ·T²·KL(softmax(z_last/T) ‖ softmax(z/T)), where the last branch is a fixed teacher
    (Hinton et al. 2015, Sec. 2; from the last exit to earlier ones: Phuong and Lampert 2019).
    """
    exits, batch, _ = logits.shape
    loss = functional.cross_entropy(
        logits.flatten(0, 1), labels.repeat(exits), reduction="none", label_smoothing=label_smoothing
    )
    hard = loss.view(exits, batch).sum(dim=1) / batch
    if distillation == 0.0 or exits == 1:
        return hard
    teacher = functional.log_softmax(logits[-1].detach() / temperature, dim=-1)
    students = functional.log_softmax(logits[:-1] / temperature, dim=-1)
    divergence = functional.kl_div(students, teacher.expand_as(students), log_target=True, reduction="none")
    soft = temperature**2 * divergence.sum(dim=2).mean(dim=1)
    return functional.pad(soft, (0, 1)) * distillation + hard * hard.new_tensor([1 - distillation] * (exits - 1) + [1])
