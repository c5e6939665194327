"""Holding two opposite answers in balance while everything else is learnt."""

from typing import Any


class Balance:
    """Holds the mean preference between two opposite answers while everything else is learnt.

    The tilt is the minibatch's mean difference of their log-probabilities. An optimizer step d changes it by g.d, g its
    gradient; d is replaced by d - g (g.d + rate * tilt) / |g|^2, the nearest step that moves it by -rate * tilt.
    After the step and not in the loss, for Adam scales each weight by itself and would turn the direction again.
    """

    def __init__(self, parameters: list[Any], rate: float) -> None:
        self.parameters, self.rate, self.tilt = parameters, rate, 0.0
        self.before = [p.detach().clone() for p in parameters]
        self.gradient: list[Any] | None = None

    def add(self, tilt: Any) -> None:
        """Add a part of the minibatch's tilt and its gradient."""
        import torch

        gradient = torch.autograd.grad(tilt, self.parameters)
        added = self.gradient or [torch.zeros_like(g) for g in gradient]
        self.gradient = [a + g for a, g in zip(added, gradient, strict=True)]
        self.tilt += float(tilt.detach())

    def restore(self) -> None:
        """Project the step that was just taken."""
        import torch

        if self.gradient is None:
            return
        size = sum(float((g * g).sum()) for g in self.gradient)
        if size == 0:
            return
        pairs = zip(self.parameters, self.before, self.gradient, strict=True)
        moved = sum(float(((p.detach() - old) * g).sum()) for p, old, g in pairs)
        factor = -(moved + self.rate * self.tilt) / size
        with torch.no_grad():
            for parameter, g in zip(self.parameters, self.gradient, strict=True):
                parameter.add_(g, alpha=factor)
