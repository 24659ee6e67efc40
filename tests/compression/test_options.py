from __future__ import annotations

import pytest
import torch

from masa_vit.compression import compress


def test_unknown_options_are_named(dense):
    with pytest.raises(TypeError, match="unexpected keyword argument 'rank'"):
        compress(dense(), rank=2)


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (
            {'num_atoms': 5},
            r'of at most 4 layers saves nothing: choose at most 3',
        ),
        ({'num_atoms': 4}, r'num_atoms=4 .* saves nothing'),
        (
            {'num_atoms': 2, 'groups': [[0, 1], [2, 3]]},
            r'num_atoms=2 for 2 group\(s\) of at most 2 layers saves nothing: .* at most 1',
        ),
        ({'num_atoms': 0}, 'num_atoms must be an integer >= 1, got 0'),
        ({'num_atoms': 2.0}, 'num_atoms must be an integer >= 1, got 2.0'),
        ({'projections': 'qx'}, "projections='qx' is not valid"),
        ({'projections': ''}, "projections='' is not valid"),
    ],
)
def test_refuses_arguments_out_of_range(dense, kwargs, message):
    with pytest.raises(ValueError, match=message):
        compress(dense(), **kwargs)


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        ({'num_atoms': [1, 2]}, 'has 2 numbers, and there are 1 groups'),
        ({'num_atoms': 1, 'groups': [[0], [1], [2], [3]]}, 'saves nothing: use fewer groups'),
        (
            {'align': 'permutation'},
            r"align='permutation' is unknown, expected one of \('rotation',\)",
        ),
        ({'groups': 'kll'}, "groups='kll' is unknown"),
        ({'num_groups': 2}, 'num_groups=2 needs groups= one of'),
        ({'groups': 'uniform', 'num_groups': 0}, 'num_groups=0 is not valid, expected an integer'),
        ({'groups': 'uniform', 'num_groups': 2.0}, 'num_groups=2.0 is not valid'),
        ({'groups': 'uniform', 'num_groups': True}, 'num_groups=True is not valid'),
        ({'num_atoms': 2, 'sweeps': 2}, 'sweeps=2 needs a residual_rank'),
        ({'num_atoms': 2, 'residual_rank': 12}, 'which have 16,384: nothing is saved'),
        ({'num_atoms': 2, 'residual_rank': 2.5}, r'integers from 0 to 32'),
        ({'num_atoms': 'auto', 'budget': float('inf')}, 'budget=inf is not valid'),
        ({'num_atoms': 'auto', 'budget': '0.3'}, "budget='0.3' is not valid, expected a share"),
        ({'num_atoms': 'auto', 'budget': True}, 'budget=True is not valid, expected a share'),
        ({'num_atoms': 'auto', 'budget': 33}, r'from 1 on, the parameters of the whole model'),
        (
            {'num_atoms': 'auto', 'budget': 0.4, 'projections': 'qv'},
            r'those that do not share keep 8,192',
        ),
        (
            {'num_atoms': 2, 'weighting': 'input', 'calibration': torch.randn(8, 3, 48, 48)},
            r'images are \(3, 48, 48\), expected \(3, 32, 32\)',
        ),
        (
            {'num_atoms': 2, 'weighting': 'input', 'calibration': torch.randn(8, 1, 32, 32)},
            r'images are \(1, 32, 32\), expected \(3, 32, 32\)',
        ),
    ],
)
def test_refuses_what_does_not_go_together(dense, kwargs, message):
    with pytest.raises(ValueError, match=message):
        compress(dense(), **kwargs)
