"""Tables of a report: long format and terminal."""

import csv

import pytest

from masa_vit.inspection import QUANTITIES, projection_weights, singular_values, summarize
from masa_vit.inspection.report import Report
from masa_vit.inspection.tables import AXES, COLUMNS, long_rows, print_report, write_csv


def test_every_number_of_the_report_is_in_the_csv_once(report, tmp_path):
    write_csv(report, tmp_path / 'report.csv')
    with (tmp_path / 'report.csv').open(newline='') as file:
        rows = [*csv.DictReader(file)]
    assert tuple(rows[0]) == COLUMNS
    found = {tuple(row[column] for column in COLUMNS[:-1]): float(row['value']) for row in rows}
    assert len(found) == len(rows)
    expected = {}
    for scope in report.scopes():
        for name, array in scope.arrays.items():
            axes = QUANTITIES[name].axes
            for place in (array == array).nonzero().tolist() if set(axes) <= {*AXES} else []:
                row = dict.fromkeys(COLUMNS[:-1], '')
                row |= dict(model=scope.model, quantity=name, projection=scope.of)
                row |= {axis: str(index) for axis, index in zip(axes, place, strict=True)}
                expected[tuple(row.values())] = array[tuple(place)].item()
    assert found == expected  # index: all 32 singular values are kept at this size


def test_singular_values_keep_their_places_when_there_are_many(noisy):
    weights = projection_weights(noisy(embed_dim=96))
    report = Report({'wide': summarize(weights)})
    rows = [row for row in long_rows(report) if row['quantity'] == 'singular_values']
    places = sorted({row['index'] for row in rows})
    assert len(places) == 64
    assert (places[0], places[-1]) == (0, 95)
    composed = weights.compose('k')[1]
    values = singular_values(composed[None])[0] / composed.double().norm()
    for row in rows:
        if (row['projection'], row['layer']) == ('k', 1):
            # one layer or all at once; through a Gram matrix, whose rounding is eps: its square root
            assert row['value'] == pytest.approx(values[row['index']].item(), abs=1e-7)


def test_the_terminal_shows_counts_atoms_and_the_comparison(report, capsys):
    print_report(report)
    out = capsys.readouterr().out
    summary = report.models['two']
    assert f'{summary.attention_parameters:,} attention parameters' in out
    assert 'Q: C, layer by atom' in out
    assert f'{summary.projections["q"]["coefficients"][0, 0].item():+.2f}' in out
    assert 'two beside three' in out


def test_dead_and_doubled_atoms_stand_in_the_table(noisy, capsys):
    model = noisy(num_atoms=3)
    atoms = model.banks['q'].atoms.data
    atoms[1] = -2 * atoms[0]
    atoms[2] = 0
    print_report(Report({'broken': summarize(projection_weights(model))}))
    row = next(line for line in capsys.readouterr().out.splitlines() if '0=1' in line)
    cells = [cell.strip() for cell in row.split('│')]
    assert cells[1] == 'Q'
    assert cells[6:8] == ['2', '0=1']
