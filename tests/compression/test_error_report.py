"""What a report says is what can be computed by hand."""

from __future__ import annotations

import json

import pytest
import timm
import torch

from masa_vit.compression import CompressionOptions, compress_with_record
from masa_vit.compression.error_report import add_top1, describe, draw, make_report, make_table
from masa_vit.compression.image_data import Accuracy
from masa_vit.compression.source_weights import stacked_weights

SIZE = {'img_size': 32, 'patch_size': 8, 'embed_dim': 32, 'depth': 4, 'num_heads': 2}


@pytest.fixture
def dense():
    torch.manual_seed(0)
    return timm.create_model('vit_tiny_patch16_224', **SIZE, num_classes=3).eval()


def test_energy_of_plain_matrix_pca(dense):
    report = make_report(compress_with_record(dense, CompressionOptions(2, 'qo')))
    assert [row['projection'] for row in report['rows']] == ['q', 'o']
    weights = stacked_weights(dense)
    kept = total = 0.0
    for row in report['rows']:
        values = torch.linalg.svdvals(weights[row['projection']].flatten(1)).square()
        assert row['energy'] == pytest.approx(float(values[:2].sum() / values.sum()))
        assert row['layers'] == [0, 1, 2, 3]
        assert (row['num_atoms'], row['mean_rank']) == (2, 0)
        assert 'output_error' not in row
        kept, total = kept + float(values[:2].sum()), total + float(values.sum())
    assert report['energy'] == pytest.approx(kept / total)
    assert report['cost'] == pytest.approx(1 - kept / total)
    assert report['sharing'] == {'num_atoms': 2, 'projections': 'qo'}


def test_random_weights_keep_what_gaussian_matrices_keep(dense):
    """The control of weights that are Gaussian themselves: no redundancy is reported."""
    for kwargs in ({}, {'align': 'rotation'}, {'residual_rank': 4}):
        report = make_report(compress_with_record(dense, CompressionOptions(2, **kwargs)))
        assert report['gaussian'] == pytest.approx(report['energy'], abs=0.02)
        for row in report['rows']:
            assert row['gaussian'] == pytest.approx(row['energy'], abs=0.05)


def test_alike_layers_stand_out_from_gaussian_matrices(dense):
    with torch.no_grad():
        for block in dense.blocks[1:]:
            block.attn.qkv.weight.copy_(dense.blocks[0].attn.qkv.weight)
    report = make_report(compress_with_record(dense, CompressionOptions(1, 'qkv')))
    assert report['energy'] == pytest.approx(1)
    assert report['gaussian'] < 0.5


def test_error_of_the_outputs(dense):
    images = torch.randn(8, 3, 32, 32)
    compression = compress_with_record(dense, CompressionOptions(2, 'v', weighting='input'), images)
    (row,) = make_report(compression, control=False)['rows']
    seen = {}
    for index, block in enumerate(dense.blocks):
        block.attn.qkv.register_forward_hook(
            lambda m, i, o, index=index: seen.update({index: i[0]})
        )
    dense(images)
    errors = []
    for index, block in enumerate(dense.blocks):
        x = seen[index].flatten(0, 1)
        weight = block.attn.qkv.weight.chunk(3)[2]
        fitted = compression.model.blocks[index].attn.qkv.weight.chunk(3)[2]
        errors.append(
            float((x @ (weight - fitted).T).square().sum() / (x @ weight.T).square().sum())
        )
    assert row['output_error'] == pytest.approx(sum(errors) / 4, rel=1e-3)
    assert 'gaussian' not in row


@pytest.mark.parametrize(
    ('top1', 'too_lossy', 'why'),
    [
        ({'before': 70.0, 'after': 69.0}, False, '1.0 points of top-1 are lost'),
        ({'before': 70.0, 'after': 30.0}, True, '40.0 points of top-1 are lost'),
        ({}, True, 'of the energy of the weights is kept'),
    ],
)
def test_the_verdict_is_plain(dense, top1, too_lossy, why):
    accuracies = {name: Accuracy(percent, 9) for name, percent in top1.items()}
    report = make_report(compress_with_record(dense, CompressionOptions(2)), accuracies)
    assert report['too_lossy'] is too_lossy
    assert why in report['why']
    told = '\n'.join(describe(report))
    assert ('needs fine-tuning' in told) is too_lossy


def test_forms_of_a_report(dense, tmp_path):
    options = CompressionOptions(
        'auto', groups=[[0, 2], [1, 3]], budget=0.8, residual_rank='energy', align='rotation'
    )
    compression = compress_with_record(dense, options)
    report = make_report(compression, {'after': Accuracy(40.0, 10), 'before': Accuracy(50.0, 10)})
    add_top1(report, 'epoch 1', Accuracy(45.0, 2000))
    assert json.loads(json.dumps(report)) == report
    assert report['alignment']['after'] >= report['alignment']['before']
    parameters = report['parameters']
    assert parameters['compressed']['attention'] <= 0.8 * parameters['dense']['attention']
    assert make_table(report).row_count == 8
    told = 'before 50.00, after 40.00 (10 images), epoch 1 45.00 (2,000 images)'
    assert any(line.endswith(told) for line in describe(report))
    del report['top1_images']  # as in reports of earlier versions
    add_top1(report, 'epoch 3', Accuracy(46.0, 2000))
    told = 'before 50.00, after 40.00, epoch 1 45.00, epoch 3 46.00 (2,000 images)'
    assert any(line.endswith(told) for line in describe(report))
    draw(report).savefig(tmp_path / 'a.png')
    assert (tmp_path / 'a.png').stat().st_size > 5000
