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
from masa_vit.layers.composition import COMPOSITIONS, composing, refresh
from masa_vit.layers.conversion import bake_coefficients, fold_linears
from masa_vit.layers.dictionaries import (
    Dictionaries,
    Dictionary,
    bank_name,
    check_groups,
    parse_bank_name,
)
from masa_vit.layers.linear import SharedLinear
from masa_vit.layers.sharing import (
    COEFFICIENT_KINDS,
    check_ranks,
    projection_shapes,
    read_dictionaries,
    share_linears,
)

__all__ = [
    'COEFFICIENT_KINDS',
    'COMPOSITIONS',
    'AtomBank',
    'CoefficientGenerator',
    'CoefficientSource',
    'Dictionaries',
    'Dictionary',
    'DirectCoefficients',
    'FrozenCoefficients',
    'MlpCoefficients',
    'SharedLinear',
    'assign_coefficients',
    'bake_coefficients',
    'bank_name',
    'check_groups',
    'check_ranks',
    'compose',
    'composing',
    'draw_coefficients',
    'fold_linears',
    'orthogonal_coefficients',
    'parse_bank_name',
    'projection_shapes',
    'read_dictionaries',
    'refresh',
    'share_linears',
]
