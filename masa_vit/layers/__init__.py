"""Weight sharing across layers, for any stack of alike blocks (needs torch only)."""

from masa_vit.layers.atoms import AtomBank, compose
from masa_vit.layers.coefficients import (
    CoefficientGenerator,
    CoefficientSource,
    DirectCoefficients,
    FrozenCoefficients,
    MlpCoefficients,
    assign_coefficients,
    draw_coefficients,
    orthogonal_coefficients,
)
from masa_vit.layers.conversion import bake_coefficients, fold_linears
from masa_vit.layers.sharing import COEFFICIENT_KINDS, SharedLinear, share_linears

__all__ = [
    'COEFFICIENT_KINDS',
    'AtomBank',
    'CoefficientGenerator',
    'CoefficientSource',
    'DirectCoefficients',
    'FrozenCoefficients',
    'MlpCoefficients',
    'SharedLinear',
    'assign_coefficients',
    'bake_coefficients',
    'compose',
    'draw_coefficients',
    'fold_linears',
    'orthogonal_coefficients',
    'share_linears',
]
