"""Weight sharing across the layers of any stack of equal blocks (needs torch only)."""

from masa_vit.layers.bank import AtomBank, compose
from masa_vit.layers.blocks import SharedBlocks, bake_coefficients, fuse_children
from masa_vit.layers.checks import (
    check_groups,
    check_ranks,
    projection_shapes,
)
from masa_vit.layers.coefficients import (
    ChannelCoefficients,
    CoefficientGenerator,
    CoefficientSource,
    DirectCoefficients,
    FrozenCoefficients,
    MlpCoefficients,
    assign_coefficients,
    draw_coefficients,
    orthogonal_coefficients,
)
from masa_vit.layers.dictionaries import Dictionaries, Dictionary, bank_name, parse_bank_name
from masa_vit.layers.linear import Repeat, SharedLinear
from masa_vit.layers.sharing import read_dictionaries, share_linears

__all__ = [
    'AtomBank',
    'ChannelCoefficients',
    'CoefficientGenerator',
    'CoefficientSource',
    'Dictionaries',
    'Dictionary',
    'DirectCoefficients',
    'FrozenCoefficients',
    'MlpCoefficients',
    'Repeat',
    'SharedBlocks',
    'SharedLinear',
    'assign_coefficients',
    'bake_coefficients',
    'bank_name',
    'check_groups',
    'check_ranks',
    'compose',
    'draw_coefficients',
    'fuse_children',
    'orthogonal_coefficients',
    'parse_bank_name',
    'projection_shapes',
    'read_dictionaries',
    'share_linears',
]
