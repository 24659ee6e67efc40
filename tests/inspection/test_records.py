"""Records of a training run, and what follows from them: against the weights themselves."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from masa_vit import inspection


def trained(small, epochs):
    """The same model always, with what stands for its training."""
    torch.manual_seed(0)
    model = small()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * epochs * torch.randn_like(parameter)
    return model


@pytest.fixture
def model(small):
    return small(dictionaries=['qv', 'k', 'o'], num_atoms={'qv': 3, 'k': 2, 'o': 2})


@pytest.fixture
def records(small):
    return [inspection.record_of(trained(small, epoch), epoch) for epoch in range(3)]


def write_all(records, work_dir):
    for record in records:
        inspection.write_record(record, work_dir / 'atoms')
    return work_dir


def assert_same(record, other):
    assert record.epoch == other.epoch
    for mine, others in ((record.coef, other.coef), (record.gram, other.gram)):
        assert list(mine) == list(others)
        for name, tensor in mine.items():
            assert tensor.dtype == others[name].dtype
            assert torch.equal(tensor, others[name]), name


@pytest.mark.parametrize('kwargs', [{}, {'coefficients': 'mlp'}, {'groups': [[0, 1], [2, 3]]}])
def test_model_wrapper_and_state_dict_have_one_record(small, kwargs):
    model = small(**kwargs)
    record = inspection.record_of(model, 4)
    for source in (nn.Sequential(model), model.state_dict()):
        assert_same(inspection.record_of(source, 4), record)
    weights = inspection.projection_weights(model)
    for name, gram in record.gram.items():
        assert torch.equal(record.coef[name], weights.coef[name])
        assert torch.equal(gram, inspection.gram_of_atoms(weights.atoms[name]))


def test_a_file_holds_the_record_and_projections_may_share_atoms(model, tmp_path):
    record = inspection.record_of(model, 12)
    assert torch.equal(record.gram['q'], record.gram['v'])
    path = inspection.write_record(record, tmp_path / 'atoms')
    assert path == tmp_path / 'atoms' / 'epoch_12.safetensors'
    assert_same(inspection.read_record(path), record)
    assert path.stat().st_size < 4096
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_a_failed_writing_leaves_the_old_file(records, tmp_path, monkeypatch):
    path = inspection.write_record(records[1], tmp_path)
    before = path.read_bytes()

    def broken(_):
        raise OSError('no space left on device')

    monkeypatch.setattr('os.fsync', broken)
    with pytest.raises(OSError, match='no space left'):
        inspection.write_record(records[2]._replace(epoch=1), tmp_path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_broken_records_say_what_is_wrong(records, tmp_path):
    with pytest.raises(FileNotFoundError, match='epoch_9'):
        inspection.read_record(tmp_path / 'epoch_9.safetensors')
    path = inspection.write_record(records[0], tmp_path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match='truncated'):
        inspection.read_record(path)
    known = {'format': 'masa_vit.atoms', 'version': '1', 'epoch': '0'}
    coef, gram = torch.ones(4, 2), torch.ones(2, 2)
    for tensors, metadata, message in (
        ({'coef.q': coef, 'gram.q': gram}, None, 'not a record of atoms'),
        ({'coef.q': coef, 'gram.q': gram}, {**known, 'version': '2'}, "version '2'"),
        ({'coef.q': coef, 'gram.q': gram}, {**known, 'epoch': 'x'}, "epoch 'x'"),
        ({'coef.q': coef}, known, 'incomplete'),
        ({'coef.q': coef, 'gram.q': torch.ones(3, 3)}, known, r'incomplete.*\(3, 3\)'),
        ({}, known, 'incomplete'),
    ):
        save_file(tensors, path, metadata)
        with pytest.raises(ValueError, match=message):
            inspection.read_record(path)


def test_history_of_the_records_is_in_the_order_of_epochs(records, tmp_path):
    records = [
        records[0]._replace(epoch=2),
        records[1]._replace(epoch=10),
        records[2]._replace(epoch=9),
    ]
    write_all(records, tmp_path)
    (tmp_path / 'atoms' / '.epoch_11.safetensors.tmp').write_bytes(b'a killed run')
    torch.save({'state_dict': {}}, tmp_path / 'epoch_10.pth')  # not looked at
    expected = [records[0], records[2], records[1]]
    for folder in (tmp_path, tmp_path / 'atoms'):
        history = inspection.read_history(folder)
        for record, other in zip(history, expected, strict=True):
            assert_same(record, other)


@pytest.mark.parametrize('kind', ['epoch', 'iter'])
def test_history_of_checkpoints(small, records, tmp_path, kind):
    for number in (0, 2):
        state = trained(small, number).state_dict()
        state = {f'model.{key}': value for key, value in state.items()}
        torch.save({'state_dict': state, 'meta': {}}, tmp_path / f'{kind}_{number}.pth')
    torch.save({'state_dict': {}}, tmp_path / 'best_epoch_1.pth')
    if kind == 'epoch':
        torch.save({'state_dict': {}}, tmp_path / 'iter_3.pth')
    for record, other in zip(inspection.read_history(tmp_path), records[::2], strict=True):
        assert_same(record, other)


def test_no_history(small, records, tmp_path):
    with pytest.raises(FileNotFoundError, match='does not exist'):
        inspection.read_history(tmp_path / 'nowhere')
    (tmp_path / 'atoms').mkdir()
    with pytest.raises(FileNotFoundError, match=r'atoms/epoch_\*.*epoch_\*\.pth'):
        inspection.read_history(tmp_path)
    torch.save(small('vit_tiny_patch16_224').state_dict(), tmp_path / 'epoch_1.pth')
    with pytest.raises(ValueError, match=r'epoch_1\.pth.*nothing is shared'):
        inspection.read_history(tmp_path)


def test_two_runs_in_one_folder(small, records, tmp_path):
    write_all(records[:2], tmp_path)
    inspection.write_record(inspection.record_of(small(num_atoms=3), 2), tmp_path / 'atoms')
    with pytest.raises(ValueError, match=r'several runs.*\(4, 2\).*epoch 0.*\(4, 3\).*epoch 2'):
        inspection.read_history(tmp_path)
    atoms = tmp_path / 'atoms'
    (atoms / 'epoch_1.safetensors').rename(atoms / 'epoch_2.safetensors')
    inspection.write_record(records[1], atoms)
    with pytest.raises(ValueError, match='two records of epoch 1'):
        inspection.read_history(tmp_path)


def test_later_records_are_removed(records, tmp_path):
    inspection.remove_records(tmp_path / 'nowhere', after=0)
    write_all(records, tmp_path)
    kept = tmp_path / 'atoms' / 'notes.txt'
    kept.touch()
    inspection.remove_records(tmp_path / 'atoms', after=1)
    assert [record.epoch for record in inspection.read_history(tmp_path)] == [0, 1]
    assert kept.exists()


def test_quantities_are_those_of_the_weights(small, records):
    history = inspection.history_quantities(records)
    assert list(history) == list('qkvo')
    for epoch in range(3):
        weights = inspection.projection_weights(trained(small, epoch))
        for name, quantities in history.items():
            coef, gram = weights.coef[name], inspection.gram_of_atoms(weights.atoms[name])
            composed = weights.compose(name)
            values = torch.linalg.svdvals(composed.flatten(1).double()).square()[:2]
            sizes = inspection.contributions(coef, gram)
            expected = {
                'coefficients': coef.double(),
                'contributions': sizes,
                'shares': inspection.atom_shares(coef, gram),
                'effective_atoms': inspection.participation_ratio(sizes.square()),
                'atom_use': inspection.atom_use(coef, gram),
                'atom_overlap': inspection.atom_overlaps(gram),
                'composed_similarity': inspection.cosine_similarity(composed),
                'canonical_energies': values / values.sum(),
            }
            assert quantities.keys() == expected.keys()
            for key, value in expected.items():
                torch.testing.assert_close(quantities[key][epoch], value, atol=1e-5, rtol=1e-5)


def test_energies_are_padded_where_the_weights_span_less():
    gram = torch.eye(3, dtype=torch.float64)
    one, two = torch.tensor([[1.0, 0, 0], [2, 0, 0]]), torch.tensor([[1.0, 0, 0], [0, 1, 0]])
    records = [
        inspection.AtomRecord(e, {'q': c}, {'q': gram}, {'q': 'q'})
        for e, c in enumerate((one, two))
    ]
    energies = inspection.history_quantities(records)['q']['canonical_energies']
    torch.testing.assert_close(energies, torch.tensor([[1, 0], [0.5, 0.5]]).double())


def test_summary_of_a_known_bank():
    # two atoms are one with another sign, the third is not used
    gram = torch.tensor([[1.0, -2, 0], [-2, 4, 0], [0, 0, 1]], dtype=torch.float64)
    coef = torch.tensor([[2.0, 1, 0], [4, 0, 0], [0, 1, 0]])
    numbers = inspection.summary_numbers(
        inspection.AtomRecord(0, {'q': coef}, {'q': gram}, {'q': 'q'})
    )['q']
    assert numbers == pytest.approx(
        {
            'effective_atoms': (2 + 1 + 1) / 3,
            'dead_atoms': 1,
            'doubled_atoms': 1,
            'layer_similarity': -1 / 3,  # the first layer is nothing, the others are opposites
        }
    )
    single = inspection.AtomRecord(0, {'q': coef[1:2]}, {'q': gram}, {'q': 'q'})
    assert inspection.summary_numbers(single)['q']['layer_similarity'] == 0


def test_no_history_of_nothing_or_of_what_diverged(small, records):
    with pytest.raises(ValueError, match='records is empty'):
        inspection.history_quantities([])
    model = small()
    with torch.no_grad():
        model.banks['q'].atoms[0, 0, 0] = float('nan')
    diverged = inspection.record_of(model, 3)
    assert not diverged.is_finite
    assert records[0].is_finite
    with pytest.raises(ValueError, match=r'epoch 3.*not finite'):
        inspection.history_quantities([*records, diverged])


def test_coefficients_without_atoms(small):
    state = {key: value for key, value in small().state_dict().items() if '_banks.o' not in key}
    with pytest.raises(ValueError, match=r"\['o'\] have coefficients but no atoms"):
        inspection.record_of(state, 0)
