"""Where the coefficients of a block come from.

Every block owns one `CoefficientSource`, which gives the coefficients ``c_l`` of each projection of
that block. Three sources share one small interface, `rows(names)`:

- `DirectCoefficients`: a trainable vector per projection;
- `FrozenCoefficients`: given vectors, which do not train; one-hot rows express schemes in which
  layers share whole matrices (Sequential, Repeat-all-over);
- `MlpCoefficients`: the paper's, a trainable embedding of the block through a three-layer MLP, the
  `CoefficientGenerator`, which all blocks share and which is dropped after training (`bake`).

Coefficients are signed and unconstrained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import nn
from torch.nn import functional as F

from masa_vit.layers.autograd import Recomputed
from masa_vit.layers.context import no_autocast, runs_eagerly
from masa_vit.layers.dictionaries import Dictionaries


@torch.fx.wrap  # one node for every fx tracer, as `compose`
def generate(embedding: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
    """Run the coefficient MLP, in the dtype of its weights even under autocast.

    Args:
        embedding: (embed_dim,), or of several blocks, (L, embed_dim).
        weights: Weight and bias of the three layers, in order.

    Returns:
        The coefficients of all projections, (sum of S,) or (L, sum of S).
    """
    if runs_eagerly(embedding):
        return Recomputed.apply(_run_mlp, embedding, *weights)
    return _run_mlp(embedding, *weights)


def _run_mlp(embedding: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
    w1, b1, w2, b2, w3, b3 = weights
    with no_autocast(embedding.device):
        hidden = F.gelu(F.linear(F.gelu(F.linear(embedding, w1, b1)), w2, b2))
        return F.linear(hidden, w3, b3)


class CoefficientSource(nn.Module):
    """The coefficients of the shared projections of one block."""

    kind: str = ''

    def __init__(self, num_atoms: Mapping[str, int]) -> None:
        """Serve the projections named in `num_atoms`, each with its number of atoms S."""
        super().__init__()
        self.num_atoms = dict(num_atoms)

    def rows(self, names: Sequence[str]) -> list[torch.Tensor]:
        """Return one vector (S,) for every projection in `names`."""
        return [getattr(self, name) for name in names]

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """Return what the coefficients are made of: they change only when one of these does."""
        return tuple(getattr(self, name) for name in self.num_atoms)

    @torch.no_grad()
    def values(self) -> dict[str, torch.Tensor]:
        """Return a detached copy of all coefficients of the block, name -> (S,)."""
        names = list(self.num_atoms)
        return {
            name: row.detach().clone() for name, row in zip(names, self.rows(names), strict=True)
        }

    def extra_repr(self) -> str:
        """Name the projections in the model's printout."""
        return ', '.join(f'{name}: {num}' for name, num in self.num_atoms.items())


class DirectCoefficients(CoefficientSource):
    """Trainable coefficients, one vector (S,) per projection."""

    kind = 'direct'

    def __init__(self, values: Mapping[str, torch.Tensor]) -> None:
        """Start from `values`, name -> (S,)."""
        super().__init__({name: row.numel() for name, row in values.items()})
        for name, row in values.items():
            self.register_parameter(name, nn.Parameter(row.detach().clone()))


class FrozenCoefficients(CoefficientSource):
    """Given coefficients, one vector (S,) per projection, saved with the model but never trained."""

    kind = 'frozen'

    def __init__(
        self,
        values: Mapping[str, torch.Tensor],
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Keep `values`, name -> (S,), with numbers also where `device` is 'meta'."""
        super().__init__({name: row.numel() for name, row in values.items()})
        self._given = {name: row.tolist() for name, row in values.items()}
        for name, row in values.items():
            self.register_buffer(name, row.detach().to(device=device, dtype=dtype, copy=True))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Write the given values again, e.g. after a model came from the meta device."""
        for name, row in self._given.items():
            buffer = getattr(self, name)
            buffer.copy_(torch.tensor(row, device='cpu'))


class CoefficientGenerator(nn.Module):
    """Three-layer MLP from the embedding of a block to the coefficients of all its projections.

    The paper names the three layers only. Ours: GELU between them, `embed_dim` and `hidden_dim` of
    64, one MLP for all projections of a model (`fc3` has one output per projection and atom).
    """

    def __init__(
        self,
        num_atoms: Mapping[str, int],
        embed_dim: int = 64,
        hidden_dim: int = 64,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Build the MLP embed_dim -> hidden_dim -> hidden_dim -> sum of the numbers of atoms.

        Raises:
            ValueError: If a width is not positive.
        """
        super().__init__()
        if embed_dim < 1 or hidden_dim < 1:
            raise ValueError(
                'the widths of the coefficient MLP must be >= 1, got '
                f'embed_dim={embed_dim}, hidden_dim={hidden_dim}'
            )
        self.num_atoms = dict(num_atoms)
        self.embed_dim = embed_dim
        self.fc1 = nn.Linear(embed_dim, hidden_dim, device=device, dtype=dtype)
        self.fc2 = nn.Linear(hidden_dim, hidden_dim, device=device, dtype=dtype)
        self.fc3 = nn.Linear(hidden_dim, sum(num_atoms.values()), device=device, dtype=dtype)

    def rows(self, embedding: torch.Tensor) -> dict[str, torch.Tensor]:
        """Map embeddings (..., embed_dim) to the coefficients, name -> (..., S)."""
        coef = generate(embedding, *self.tensors())
        rows, start = {}, 0
        for name, num in self.num_atoms.items():  # slices, which fx can trace, where split is not
            rows[name] = coef[..., start : start + num]
            start += num
        return rows

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """Return weight and bias of the three layers."""
        fcs = (self.fc1, self.fc2, self.fc3)
        return tuple(param for fc in fcs for param in (fc.weight, fc.bias))

    @torch.no_grad()
    def fit(self, embeddings: torch.Tensor, targets: torch.Tensor) -> None:
        """Draw the MLP anew and solve its last layer, so that it starts at `targets` (ours).

        A freshly drawn MLP maps all embeddings to nearly the same, nearly zero coefficients: all
        layers would start alike, with vanishing weights. Instead the last layer is the least-norm
        solution of ``fc3(hidden) = targets``, exact when hidden_dim >= L.

        Args:
            embeddings: (L, embed_dim).
            targets: (L, sum of S), columns in the order of `num_atoms`.
        """
        if self.fc1.weight.is_meta:
            return
        hidden = embeddings.cpu().double()  # no QR in half precision, no least-norm lstsq on CUDA
        for layer in (self.fc1, self.fc2):
            drawn = torch.empty(layer.weight.shape, dtype=torch.float64, device='cpu')
            layer.weight.copy_(nn.init.orthogonal_(drawn, gain=2**0.5))
            nn.init.zeros_(layer.bias)
            hidden = F.gelu(hidden @ layer.weight.cpu().double().T)
        solution = torch.linalg.lstsq(hidden, targets.cpu().double(), driver='gelsd').solution
        self.fc3.weight.copy_(solution.T)
        nn.init.zeros_(self.fc3.bias)


class MlpCoefficients(CoefficientSource):
    """Coefficients from a trainable embedding of the block, through the generator of the model."""

    kind = 'mlp'

    def __init__(
        self,
        generator: CoefficientGenerator,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Own the embedding; the generator stays with the model that registers it."""
        super().__init__(generator.num_atoms)
        # In a tuple, so that the generator is not registered a second time in every block.
        self._generator = (generator,)
        self.embedding = nn.Parameter(torch.empty(generator.embed_dim, device=device, dtype=dtype))
        self.reset_parameters()

    @property
    def generator(self) -> CoefficientGenerator:
        """The MLP that all blocks of the model share."""
        return self._generator[0]

    def reset_parameters(self) -> None:
        """Draw the embedding from a standard normal distribution (ours)."""
        nn.init.normal_(self.embedding)

    def rows(self, names: Sequence[str]) -> list[torch.Tensor]:
        """Return one vector (S,) for every projection in `names`."""
        rows = self.generator.rows(self.embedding)
        return [rows[name] for name in names]

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """Return the embedding, and the weights of the generator."""
        return (self.embedding, *self.generator.tensors())


def coefficient_matrices(sources: Sequence[CoefficientSource]) -> dict[str, torch.Tensor]:
    """C (L, S) of every projection of blocks that have the same kind of source.

    Projections of which the blocks have different S are left out: they draw on different banks.
    """
    first = sources[0]
    if isinstance(first, MlpCoefficients):  # one pass through the MLP for all blocks
        embeddings = tuple(cast(MlpCoefficients, source).embedding for source in sources)
        return first.generator.rows(torch.stack(embeddings))
    names = list(first.num_atoms)
    rows = [source.rows(names) for source in sources]
    return {
        name: torch.stack(of_name)
        for name, of_name in zip(names, zip(*rows, strict=True), strict=True)
        if len({source.num_atoms[name] for source in sources}) == 1
    }


def orthogonal_coefficients(num_rows: int, num_atoms: int) -> torch.Tensor:
    """Draw rows of coefficients (rows, S): unit rows, orthonormal within each run of S rows.

    Float32 on the CPU, whatever the default device and dtype are.
    """
    runs = -(-num_rows // num_atoms)
    empty = torch.empty(runs, num_atoms, num_atoms, dtype=torch.float32, device='cpu')
    return torch.cat([nn.init.orthogonal_(run) for run in empty])[:num_rows]


def draw_coefficients(dictionaries: Dictionaries, num_layers: int) -> dict[str, list[torch.Tensor]]:
    """Draw an initial C for every projection: L rows (S,), where S may differ between groups.

    Unit rows keep the variance of every W_l at that of the atoms; orthogonal rows keep the weights
    of neighbouring layers, and those of projections with a common dictionary, uncorrelated
    (orthogonal coefficients: Savarese & Maire, ICLR 2019, https://arxiv.org/abs/1902.09701; the
    choice is ours, the MASA paper does not name one).
    """
    coefs: dict[str, list[torch.Tensor]] = {}
    for names, layers, num_atoms in dictionaries.values():
        rows = orthogonal_coefficients(len(layers) * len(names), num_atoms)
        of_layer = rows.view(len(layers), len(names), num_atoms)
        for i, name in enumerate(names):
            drawn = coefs.setdefault(name, [rows.new_empty(0)] * num_layers)
            for layer, row in zip(layers, of_layer[:, i], strict=True):
                drawn[layer] = row
    return coefs


@torch.no_grad()
def assign_coefficients(
    sources: Sequence[CoefficientSource],
    coefs: Mapping[str, torch.Tensor | Sequence[torch.Tensor]],
) -> None:
    """Set the trainable coefficients of all blocks of a model; frozen ones stay as given.

    Args:
        sources: The source of each block, in order.
        coefs: Projection name -> C (L, S), or its rows.
    """
    mlp = [source for source in sources if isinstance(source, MlpCoefficients)]
    if mlp:
        targets = torch.cat([torch.stack([*coefs[name]]) for name in mlp[0].num_atoms], dim=1)
        for generated in mlp:
            generated.reset_parameters()
        embeddings = torch.stack([generated.embedding for generated in mlp])
        mlp[0].generator.fit(embeddings, targets.to(embeddings.device))
    for index, source in enumerate(sources):
        if isinstance(source, DirectCoefficients):
            for name in source.num_atoms:
                getattr(source, name).copy_(coefs[name][index])
