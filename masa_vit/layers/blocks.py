"""The container of a stack of blocks and the modules that the blocks share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from masa_vit.layers.coefficients import (
    CoefficientGenerator,
    CoefficientSource,
    DirectCoefficients,
    MlpCoefficients,
)
from masa_vit.layers.linear import SharedLinear


class SharedBlocks(nn.Module):
    """Blocks, and the banks and coefficient generators that they share.

    Replaces the `nn.Sequential` of blocks: iteration, length and indices cover the blocks only, and a
    slice keeps the banks. Since it owns the banks, all operations on
    ``model.blocks`` (freezing, optimizer groups, moving) include them, and FSDP, which wraps single
    blocks, keeps them in the outer group.
    """

    def __init__(self, blocks: Iterable[nn.Module], shared: Mapping[str, nn.Module]) -> None:
        """Register the blocks as '0', '1', ... and the shared modules under their names.

        Raises:
            ValueError: If a block uses banks or a generator that are not in `shared`.
        """
        super().__init__()
        self.depth = 0
        for block in blocks:
            self.add_module(str(self.depth), block)
            self.depth += 1
        for name, module in shared.items():
            self.add_module(name, module)
        for block in self:
            self._check(block)

    @property
    def shared(self) -> dict[str, Any]:
        """Name -> the banks (an `nn.ModuleDict` of `AtomBank`) or the generator of a module."""
        return {name: child for name, child in self.named_children() if not name.isdigit()}

    def __len__(self) -> int:
        return self.depth

    def __iter__(self) -> Iterator[Any]:
        return iter([self[index] for index in range(self.depth)])

    def __getitem__(self, index: Any) -> Any:
        where = range(self.depth)[index]  # as a list: negative numbers, slices, IndexError
        if isinstance(where, range):
            return SharedBlocks([self[i] for i in where], self.shared)
        return getattr(self, str(where))

    def __setitem__(self, index: int, block: nn.Module) -> None:
        setattr(self, str(range(self.depth)[index]), block)

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, nn.Module):
            # The layers hold references to these modules and would go on using the old ones.
            if name in self.shared:
                raise AttributeError(
                    f'{name!r} cannot be replaced as a whole: replace single banks, '
                    f"blocks.{name}['...'] = bank, or write into their atoms"
                )
            self._check(value)
        super().__setattr__(name, value)

    def _check(self, block: nn.Module) -> None:
        """Raise ValueError if a block uses modules that this container does not own."""
        own = {id(module) for module in self.shared.values()}
        for module in block.modules():
            if not isinstance(module, (SharedLinear, MlpCoefficients)):
                continue
            if id(module._references[0]) not in own:  # banks or generator
                raise ValueError(
                    f'a {type(module).__name__} of the block uses atoms or an MLP that are not in '
                    'these blocks (a deep copy of a block has copies of them): copy the whole model'
                )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the blocks in order."""
        for block in self:
            x = block(x)
        return x

    def drop_unused_banks(self) -> None:
        """Delete the banks that no block uses, also for other slices that share them."""
        layers = [module for module in self.modules() if isinstance(module, SharedLinear)]
        used = {id(bank) for layer in layers for bank in layer.banks.values()}
        for banks in self.shared.values():
            for key in [*banks] if isinstance(banks, nn.ModuleDict) else ():
                if id(banks[key]) not in used:
                    del banks[key]

    def fuse(self) -> nn.Sequential:
        """Replace all shared layers of the blocks by dense ones; return the blocks without banks.

        timm's `reparameterize_model` calls this.
        """
        _fuse_layers(self)
        return nn.Sequential(*self)

    def __prepare_scriptable__(self) -> nn.Module:
        """Refuse TorchScript; see `SharedLinear`."""
        raise TypeError('TorchScript cannot compile shared layers: script masa_vit.fold(model)')


def fuse_children(module: nn.Module) -> None:
    """Replace all shared layers in `module` by dense ones, in place."""
    for parent, name, child in _children(module):
        if isinstance(child, SharedBlocks):
            setattr(parent, name, child.fuse())
    _fuse_layers(module)  # of a block without its container


def _fuse_layers(module: nn.Module) -> None:
    for parent, name, child in _children(module):
        if isinstance(child, SharedLinear):
            setattr(parent, name, child.fuse())
    for parent, name, child in _children(module):
        if isinstance(child, CoefficientSource):
            delattr(parent, name)


def bake_coefficients(module: nn.Module) -> None:
    """Replace generated coefficients by trainable ones of the same values, in place.

    Raises:
        ValueError: If a block in `module` uses an MLP outside of it.
    """
    owned = {id(child) for child in module.modules()}
    for child in module.modules():
        if isinstance(child, MlpCoefficients) and id(child.generator) not in owned:
            raise ValueError(
                f'the coefficient MLP is outside of this {type(module).__name__}: bake the whole model'
            )
    for parent, name, child in _children(module):
        if isinstance(child, MlpCoefficients):
            direct = DirectCoefficients(child.values()).train(child.training)
            setattr(parent, name, direct.requires_grad_(child.embedding.requires_grad))
    for parent, name, child in _children(module):
        if isinstance(child, CoefficientGenerator):
            delattr(parent, name)


def _children(module: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    """List every child in `module` with its parent and name."""
    return [(parent, *child) for parent in module.modules() for child in parent.named_children()]
