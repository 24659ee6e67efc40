"""A report as one JSON document."""

import json
import re
from pathlib import Path

from masa_vit.inspection import QUANTITIES
from masa_vit.inspection.report import History, Report


def test_the_document_is_json_and_holds_the_numbers(report):
    document = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert document == report.to_dict()
    for name, summary in report.models.items():
        model = document['models'][name]
        for of, arrays in summary.projections.items():
            expected = {key: value.tolist() for key, value in arrays.items()}
            assert model['projections'][of] == expected
        assert model['attention_parameters'] == summary.attention_parameters
    assert document['history'] is None


def test_the_document_says_what_its_arrays_are(report):
    document = report.to_dict()
    assert document['quantities']['shares']['axes'] == ['layer', 'atom']
    assert document['quantities']['shares']['invariant'] == 'scale'
    named = {
        name
        for model in document['models'].values()
        for scope in (*model['projections'].values(), *model['dictionaries'].values())
        for name in scope
    }
    compared = {
        name for each in document['comparisons'][0]['projections'].values() for name in each
    }
    assert named | compared == set(document['quantities'])


def test_a_history_stands_beside_the_models(report):
    arrays = report.models['two'].projections['q']
    history = History(
        'run', [0, 1], {'q': {'coefficients': arrays['coefficients'].expand(2, -1, -1)}}
    )
    document = Report(history=history).to_dict()
    assert document['history']['epochs'] == [0, 1]
    assert document['history']['projections']['q']['coefficients'][1] == (
        arrays['coefficients'].tolist()
    )


def test_the_documentation_lists_the_quantities():
    text = (Path(__file__).parents[2] / 'docs/inspect.md').read_text(encoding='utf-8')
    rows = re.findall(r'^\| `(\w+)`: (.+?) \| ([\w, -]+) \| (\w+) \|$', text, re.MULTILINE)
    assert {name: (says.replace('\\', ''), axes, how) for name, says, axes, how in rows} == {
        name: (
            each.text,
            ', '.join(axis.replace('_', ' ') for axis in each.axes) or '-',
            each.invariant,
        )
        for name, each in QUANTITIES.items()
    }
