"""Memory that a bank lends to the passes of its layers, and keeps between them."""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Sequence

import torch


class Kept:
    """The composed weights of a stack, and what they were composed from."""

    def __init__(
        self, spec: Hashable, made_of: Sequence[torch.Tensor], weights: tuple[torch.Tensor, ...]
    ) -> None:
        self.weights = weights
        self._spec = spec
        self._tensors = [weakref.ref(tensor) for tensor in made_of]
        self._state = [(tensor.data_ptr(), tensor._version) for tensor in made_of]

    def is_of(self, spec: Hashable, made_of: Sequence[torch.Tensor]) -> bool:
        """Whether these are the same tensors with the same values, as far as torch can tell."""
        return (
            self._spec == spec
            and len(self._tensors) == len(made_of)
            and all(ref() is tensor for ref, tensor in zip(self._tensors, made_of, strict=True))
            and self._state == [(tensor.data_ptr(), tensor._version) for tensor in made_of]
        )


class Workspace:
    """What a bank keeps for the layers that draw on it: never saved, copied or pickled."""

    def __init__(self) -> None:
        self.kept: Kept | None = None  # for evaluation
        self._buffer: torch.Tensor | None = None  # of a joint pass that is over

    def lease(self, shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Lease:
        """Give a buffer for the weights (L, out * in) of one joint pass.

        On the CPU a fresh one would cost more than the composition, by the page faults; other
        devices have an allocator that keeps memory.
        """
        buffer, self._buffer = self._buffer, None
        wanted = (shape, dtype, device)
        if buffer is None or (tuple(buffer.shape), buffer.dtype, buffer.device) != wanted:
            with torch.inference_mode(False):
                buffer = torch.empty(shape, dtype=dtype, device=device)
        return Lease(self, buffer)

    def take_back(self, buffer: torch.Tensor) -> None:
        """Keep a buffer for the next joint pass."""
        if buffer.device.type == 'cpu':
            self._buffer = buffer


class Lease:
    """The buffer of one joint pass. Nobody else writes it until no graph needs it any more."""

    def __init__(self, workspace: Workspace | None, buffer: torch.Tensor) -> None:
        self.buffer = buffer
        self.uses = [0] * len(buffer)  # of each weight, not yet differentiated
        self.spent = False
        self.spendable = True
        self._workspace = workspace

    def spend(self, index: int) -> torch.Tensor:
        """Give the place (out * in) of a weight that is not needed any more, for its gradient."""
        self.spent = True
        return self.buffer[index]

    def end(self) -> None:
        """Let the next pass have the buffer."""
        workspace, self._workspace = self._workspace, None
        if workspace is not None:
            workspace.take_back(self.buffer)

    def never_end(self) -> None:
        """Leave the buffer to the graphs that hold it."""
        self._workspace = None

    def __del__(self) -> None:  # the graph is gone, be it without a backward pass
        self.end()
