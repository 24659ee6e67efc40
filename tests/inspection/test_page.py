"""The HTML report: what is in the file, and what a browser makes of it."""

from __future__ import annotations

import json
import math
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from plotly.offline import get_plotlyjs
from scipy.cluster.hierarchy import leaves_list
from selenium import webdriver

from masa_vit.inspection import compare, summarize
from masa_vit.inspection.composed_weights import ProjectionWeights
from masa_vit.inspection.page import write_page
from masa_vit.inspection.report import Comparison, History, Report

DEPTH, HEADS, WIDTH, EPOCHS = 4, 2, 12, [0, 5, 10]
HOSTILE = '</script><b onclick="alert(1)">two</b><!--'
CATCH = """<script>const errors = [];
addEventListener('error', (event) => errors.push(event.message));
addEventListener('securitypolicyviolation', (event) => errors.push(event.blockedURI));
console.error = console.warn = (...text) => errors.push(text.join(' '));</script>"""


def weights(num_atoms: int) -> ProjectionWeights:
    names = 'qkvo'
    return ProjectionWeights(
        coef={name: torch.randn(DEPTH, num_atoms) for name in names},
        atoms={name: torch.randn(num_atoms, WIDTH, WIDTH) for name in names},
        dictionaries={name: name for name in names},
        num_coefficients=len(names) * DEPTH * num_atoms,
        num_heads=HEADS,
    )


def make_report(second: str) -> Report:
    """Two models that share, one that does not, images, a comparison, a run."""
    torch.manual_seed(0)
    one, two = weights(2), weights(3)
    dense = ProjectionWeights(
        dense={name: [*torch.randn(DEPTH, WIDTH, WIDTH)] for name in 'qkvo'}, num_heads=HEADS
    )
    report = Report({'one': summarize(one), second: summarize(two), 'dense': summarize(dense)})
    report.comparisons = [Comparison('one', second, compare(one, two))]
    report.notes = {second: second}
    report.models['one'].images = {
        'class_attention': torch.rand(2, DEPTH, HEADS, 3, 4),
        'attention_distance': torch.rand(DEPTH, HEADS),
        'cka': torch.rand(DEPTH, DEPTH),
    }
    for arrays in report.models['one'].projections.values():
        for kind in ('kl', 'logits', 'accuracy'):
            arrays[f'ablation_{kind}'] = torch.randn(DEPTH, 2)
            arrays[f'ablation_{kind}_everywhere'] = torch.randn(2)
    recorded = {
        'coefficients': torch.randn(3, DEPTH, 2),
        'effective_atoms': torch.rand(3, DEPTH),
        'atom_use': torch.rand(3, 2),
    }
    report.history = History('run', EPOCHS, dict.fromkeys('qkvo', recorded))
    return report


@pytest.fixture(scope='module')
def report() -> Report:
    return make_report(HOSTILE)


@pytest.fixture(scope='module')
def expected(report) -> dict:
    return json.loads(json.dumps(report.to_dict()))


@pytest.fixture(scope='module')
def page(report, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp('page') / 'report.html'
    write_page(report, path, f'Atoms {HOSTILE}')
    return path.read_text(encoding='utf-8')


class Elements(HTMLParser):
    """Tags with their attributes, and the text of the report."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.report = ''
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][1].get('id') == 'report':
            self.report += data


def test_page_holds_every_number_of_the_report(page, expected):
    assert json.loads(Elements(page.replace(get_plotlyjs(), '')).report) == expected


def test_nothing_is_loaded(page):
    own = page.replace(get_plotlyjs(), '')
    assert len(own) < len(page) / 2
    for word in ('http:', 'https:', '@import', 'url(', 'fetch(', 'XMLHttpRequest', 'import('):
        assert word not in own, word
    tags = Elements(own).tags
    assert not [tag for tag, attrs in tags if {'src', 'href'} & set(attrs) or tag == 'link']
    (policy,) = [attrs['content'] for _, attrs in tags if 'http-equiv' in attrs]
    assert policy.startswith("default-src 'none';")
    assert 'http' not in policy
    assert 'connect-src' not in policy


def test_names_are_text_and_nothing_else(page, tmp_path):
    write_page(make_report('two'), tmp_path / 'tame.html', 'Atoms')
    tame = (tmp_path / 'tame.html').read_text(encoding='utf-8')
    plotly = get_plotlyjs()
    assert Elements(page.replace(plotly, '')).tags == Elements(tame.replace(plotly, '')).tags


def test_missing_plotly_names_the_extra(monkeypatch, report, tmp_path):
    monkeypatch.setitem(sys.modules, 'plotly.offline', None)
    with pytest.raises(ImportError, match=r'masa-vit\[inspect\]'):
        write_page(report, tmp_path / 'report.html', 'Atoms')


def test_numbers_that_json_has_not_are_refused(tmp_path):
    report = make_report('two')
    report.models['one'].images['cka'][0, 0] = math.nan
    with pytest.raises(ValueError, match='not JSON compliant'):
        write_page(report, tmp_path / 'report.html', 'Atoms')


def visit(page: str, script: str, folder: Path) -> dict:
    """Open a page in a browser 700 pixels wide, and return the result of a script on it."""
    browser = next(filter(None, map(shutil.which, ('chromium', 'google-chrome'))), None)
    driver = shutil.which('chromedriver')
    if browser is None or driver is None:
        pytest.skip('needs chromium and chromedriver')
    page = page.replace('<title>', f'{CATCH}<title>', 1)
    (folder / 'page.html').write_text(page, encoding='utf-8')
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in ('headless', 'no-sandbox', 'disable-gpu', 'window-size=700,900'):
        options.add_argument(f'--{flag}')
    with webdriver.Chrome(options, webdriver.ChromeService(driver)) as window:
        window.set_script_timeout(120)
        window.get((folder / 'page.html').as_uri())
        return window.execute_script(script)


@pytest.fixture(scope='module')
def seen(page, tmp_path_factory) -> dict:
    """What `interactions.js` found on the page."""
    script = (Path(__file__).parent / 'interactions.js').read_text(encoding='utf-8')
    return visit(page, script, tmp_path_factory.mktemp('browser'))


def of_all(expected: dict, quantity: str) -> list:
    return [of[quantity] for of in expected['models']['one']['projections'].values()]


def number(text: str) -> float:
    return float(text.replace('\N{MINUS SIGN}', '-'))


@pytest.mark.slow
def test_page_opens_without_errors_and_fits(seen):
    assert seen['errors'] == []
    assert seen['overflow'] <= 0


@pytest.mark.slow
def test_sections_are_those_with_data(seen):
    everything = (
        'summary coefficients layers effective spectra heads atoms attention activations '
        'ablation comparison history numbers'
    )
    assert seen['sections'] == everything.split()
    of_atoms = {'coefficients', 'atoms', 'attention', 'activations', 'ablation'}
    assert seen['sectionsOfDense'] == [name for name in everything.split() if name not in of_atoms]


@pytest.mark.slow
def test_run_without_a_model_has_its_history(report, tmp_path):
    write_page(Report(history=report.history), tmp_path / 'report.html', 'A run')
    page = (tmp_path / 'report.html').read_text(encoding='utf-8')
    script = """
        const shown = [...document.querySelectorAll('main section:not([hidden])')];
        dispatchEvent(new Event('beforeprint'));
        const z = byId('plot-history').data[0].z;
        return { errors, sections: shown.map((each) => each.id), z };
    """
    recorded = report.to_dict()['history']['projections']['q']['coefficients']
    seen = visit(page, script, tmp_path)
    assert seen == {'errors': [], 'sections': ['history'], 'z': recorded[-1]}


@pytest.mark.slow
def test_figures_are_drawn_when_they_are_looked_at(seen):
    assert 'plot-history' not in seen['drawnAtFirst']


@pytest.mark.slow
def test_all_figures_are_drawn_for_print(seen):
    assert seen['notPrinted'] == 0


@pytest.mark.slow
def test_tables_sort_by_number_in_both_directions(seen):
    up = [number(text) for text in seen['sorted']['cosine ascending']]
    down = [number(text) for text in seen['sorted']['cosine descending']]
    assert len(up) == 12
    assert min(up) < 0 < max(up)  # an order of texts would differ
    assert up == sorted(up)
    assert down == sorted(up, reverse=True)


@pytest.mark.slow
def test_sorting_again_keeps_the_order_of_equals(seen):
    assert seen['sorted']['projection ascending'] == [*'KKKOOOQQQVVV']
    assert seen['modelsByProjection'] == ['one', HOSTILE, 'dense'] * 4


@pytest.mark.slow
def test_heatmaps_show_the_numbers_of_the_report_on_one_scale(seen, expected):
    assert seen['coefficients'] == of_all(expected, 'coefficients')
    assert seen['canonical'] == of_all(expected, 'canonical_coefficients')
    limit = torch.tensor(of_all(expected, 'coefficients'), dtype=torch.float64).abs().max().item()
    assert seen['scale'] == [-limit, limit]
    assert seen['ablation'] == of_all(expected, 'ablation_accuracy')
    assert seen['everywhere'] == of_all(expected, 'ablation_accuracy_everywhere')


@pytest.mark.slow
def test_hover_says_layer_atom_and_value(seen, expected):
    value = of_all(expected, 'coefficients')[1][2][1]
    shown = re.fullmatch(r'layer 2, atom 1(.+)', seen['hover'])
    assert shown, seen['hover']
    assert number(shown[1]) == float(f'{value:.4g}')


@pytest.mark.slow
def test_projection_and_layer_are_selected_by_list_and_by_click(seen, expected):
    assert seen['clickedLayer'] == '2'
    k = expected['models']['one']['projections']['k']
    assert seen['markedRows'] == 2  # atoms
    shares = [value for row in k['shares'] for value in row]
    assert [number(text) for text in seen['shares']] == pytest.approx(shares, rel=5e-4)
    indices = expected['models']['one']['indices']['k']
    assert seen['spectrum'] == {'name': 'layer 2', 'x': indices, 'y': k['singular_values'][2]}
    attention = expected['models']['one']['images']['class_attention']
    assert seen['attention'] == attention[1][1]


@pytest.mark.slow
def test_layers_stand_by_depth_or_as_their_tree(seen, expected):
    k = expected['models']['one']['projections']['k']
    cosines, linkage = k['weight_similarity'], k['linkage']
    assert seen['byDepth'] == [cosines, k['coefficient_similarity']]
    leaves = leaves_list(linkage).tolist()
    assert seen['byTree']['leaves'] == leaves
    assert seen['byTree']['z'] == [[cosines[i][j] for j in leaves] for i in leaves]
    joints = [line for index, line in enumerate(seen['tree']) if index % 5 == 1]
    assert joints == [row[2] for row in linkage]


@pytest.mark.slow
def test_models_are_compared_atom_by_matched_atom(seen, expected):
    first = expected['models']['one']['projections']['k']['contributions']
    second = expected['comparisons'][0]['projections']['k']['matched_contributions']
    assert seen['matched'] == [first, second]


@pytest.mark.slow
def test_slider_and_button_move_through_the_epochs(seen, expected):
    recorded = [of['coefficients'] for of in expected['history']['projections'].values()]
    assert seen['atEpoch'] == {'shown': '5', 'z': [values[1] for values in recorded]}
    assert seen['playing'] == 'true'
    last = [values[2] for values in recorded]
    assert seen['played'] == {'pressed': 'false', 'shown': '10', 'z': last}


@pytest.mark.slow
def test_numbers_are_downloaded_from_the_page(seen, expected):
    assert seen['download'] == expected
    assert seen['downloadName'].endswith('.json')
