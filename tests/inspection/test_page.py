"""The HTML report: the content of the file, and its behaviour in a browser."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from plotly.offline import get_plotlyjs
from scipy.cluster.hierarchy import leaves_list
from selenium import webdriver

from masa_vit.inspection import compare, summarize
from masa_vit.inspection.page import digits, write_page
from masa_vit.inspection.projections import ProjectionWeights
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
    report.pictures = {'one': ['data:,one', 'data:,other']}
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


def written(report: Report, folder: Path, title: str = 'Atoms') -> str:
    """The page without plotly.js."""
    write_page(report, folder / 'report.html', title)
    return (folder / 'report.html').read_text(encoding='utf-8').replace(get_plotlyjs(), '')


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


def test_page_holds_every_number_and_loads_nothing(tmp_path):
    report = make_report(HOSTILE)
    page = written(report, tmp_path, f'Atoms {HOSTILE}')
    elements = Elements(page)
    assert json.loads(elements.report) == json.loads(json.dumps(report.to_dict()))
    assert len(page) < len(get_plotlyjs()) / 2
    for word in ('http:', 'https:', '@import', 'url(', 'fetch(', 'XMLHttpRequest', 'import('):
        assert word not in page, word
    assert not [tag for tag, attrs in elements.tags if 'href' in attrs or tag == 'link']
    (policy,) = [attrs['content'] for _, attrs in elements.tags if 'http-equiv' in attrs]
    assert policy.startswith("default-src 'none';")
    assert 'http' not in policy
    assert 'connect-src' not in policy


def test_names_are_text_and_nothing_else(tmp_path):
    def without_values(page: str) -> list:
        return [(tag, sorted(attrs)) for tag, attrs in Elements(page).tags]

    hostile = written(make_report(HOSTILE), tmp_path, HOSTILE)
    assert without_values(hostile) == without_values(written(make_report('two'), tmp_path))


@pytest.mark.parametrize('module', ['plotly.offline', 'jinja2'])
def test_a_missing_package_names_the_extra(monkeypatch, tmp_path, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r'masa-vit\[inspect\]'):
        write_page(make_report('two'), tmp_path / 'report.html', 'Atoms')


def test_numbers_that_json_has_not_are_refused(tmp_path):
    report = make_report('two')
    report.models['one'].images['cka'][0, 0] = math.nan
    with pytest.raises(ValueError, match='not JSON compliant'):
        write_page(report, tmp_path / 'report.html', 'Atoms')


@pytest.mark.parametrize(
    ('value', 'text'),
    [(None, '\N{EN DASH}'), (3, '3'), ('none', 'none'), (0.25, '0.2500'), (0.0, '0.000'),
     (-12.3456, '\N{MINUS SIGN}12.35'), (1.5e-7, '1.500e\N{MINUS SIGN}07')],
)  # fmt: skip
def test_numbers_have_four_digits(value, text):
    assert digits(value) == text


@pytest.fixture(scope='module')
def browser() -> Iterator[webdriver.Chrome]:
    binary = next(filter(None, map(shutil.which, ('chromium', 'google-chrome'))), None)
    driver = shutil.which('chromedriver')
    if binary is None or driver is None:
        pytest.skip('needs chromium and chromedriver')
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in ('headless', 'no-sandbox', 'disable-gpu', 'window-size=700,900'):
        options.add_argument(f'--{flag}')
    with webdriver.Chrome(options, webdriver.ChromeService(driver)) as window:
        yield window


class Page:
    """A page in a browser 700 pixels wide, and a reader's actions on it."""

    def __init__(self, report: Report, folder: Path, browser: webdriver.Chrome) -> None:
        write_page(report, folder / 'report.html', 'Atoms')
        text = (folder / 'report.html').read_text(encoding='utf-8')
        text = text.replace('<title>', f'{CATCH}<title>', 1)
        (folder / 'report.html').write_text(text, encoding='utf-8')
        self.run = browser.execute_script
        browser.get((folder / 'report.html').as_uri())

    def choose(self, selector: str, value: str) -> None:
        script = """const select = document.querySelector(arguments[0]);
            select.value = arguments[1];
            if (select.value !== arguments[1]) throw new Error(arguments[1]);
            select.dispatchEvent(new Event('change'));"""
        self.run(script, selector, value)

    def heatmaps(self, name: str) -> list:
        """The numbers in the heatmaps of a figure, after scrolling to it."""
        script = """const figure = document.querySelector(`[data-figure="${arguments[0]}"]`);
            figure.scrollIntoView();
            const drawn = () => figure.querySelector('svg') && !figure.stale;
            return (async () => {
                while (!drawn()) await new Promise(requestAnimationFrame);
                const traces = figure.querySelector('.plot')._fullData;
                return traces.filter((trace) => trace.type === 'heatmap')
                    .map((trace) => Array.from(trace.z, (row) => Array.from(row)));
            })();"""
        return self.run(script, name)

    def sections(self) -> list[str]:
        return self.run("return all('main section:not([hidden])').map((each) => each.id)")

    def column(self, name: str) -> list[str]:
        """Click a heading of the summary, and read the column."""
        script = """const head = all('#summary th').find((th) => th.textContent === arguments[0]);
            head.querySelector('button').click();
            return all('#summary tbody tr').map((row) => row.cells[head.cellIndex].textContent);"""
        return self.run(script, name)


def close(values: list | torch.Tensor) -> object:
    return pytest.approx(torch.as_tensor(values).double().numpy(), rel=1e-5, abs=1e-7)


SECTIONS = [
    'summary', 'coefficients', 'layers', 'effective', 'spectra', 'heads', 'atoms', 'attention',
    'activations', 'ablation', 'comparison', 'history', 'numbers',
]  # fmt: skip


@pytest.fixture(scope='module')
def report() -> Report:
    return make_report(HOSTILE)


@pytest.fixture(scope='module')
def page(report, browser, tmp_path_factory) -> Page:
    return Page(report, tmp_path_factory.mktemp('page'), browser)


@pytest.mark.slow
def test_figures_are_drawn_without_errors_when_they_come_into_view(page):
    assert page.sections() == SECTIONS
    drawn = "return all('figure:not([hidden]) svg').length"
    assert page.run("return all('[data-figure=history] svg').length") == 0
    page.run("dispatchEvent(new Event('beforeprint'))")
    assert page.run(drawn) > 0
    assert page.run("return all('figure:not([hidden])').every((f) => f.querySelector('svg'))")
    assert page.run('return errors') == []
    assert page.run('return document.documentElement.scrollWidth - window.innerWidth') <= 0


@pytest.mark.slow
def test_tables_sort_by_number_in_both_directions_and_keep_equal_rows(page):
    up, down = page.column('cosine'), page.column('cosine')
    numbers = [float(text.replace('\N{MINUS SIGN}', '-')) for text in up]
    assert len(numbers) == 12
    assert min(numbers) < 0 < max(numbers)  # an order of texts would differ
    assert numbers == sorted(numbers)
    assert down == up[::-1]
    page.column('model')
    assert page.column('projection') == [*'KKKOOOQQQVVV']


@pytest.mark.slow
def test_selectors_change_figures_and_numbers(page, report):
    def of_all(name: str, quantity: str) -> list[torch.Tensor]:
        return [arrays[quantity] for arrays in report.models[name].projections.values()]

    coefficients = of_all('one', 'coefficients')
    for found, expected in zip(page.heatmaps('coefficients'), coefficients, strict=True):
        assert found == close(expected)
    scale = "return document.querySelector('[data-figure=coefficients] .plot').layout.coloraxis"
    limit = torch.stack(coefficients).abs().max()
    assert [page.run(scale)[key] for key in ('cmin', 'cmax')] == close([-limit, limit])
    page.choose('[data-figure=coefficients] select', 'shares')
    assert page.heatmaps('coefficients')[2] == close(of_all('one', 'shares')[2])

    page.choose('#controls [data-key=projection]', 'K')
    of_k = report.models['one'].projections['k']
    leaves = leaves_list(of_k['linkage'].numpy()).tolist()
    assert page.heatmaps('layers')[0] == close(of_k['weight_similarity'][leaves][:, leaves])
    page.choose('[data-figure=layers] select', 'by depth')
    assert page.heatmaps('layers')[1] == close(of_k['coefficient_similarity'])
    shown = "return all('#numbers > div:not([hidden]) tbody td').map((td) => td.dataset.value)"
    rows = torch.tensor([float(value) for value in page.run(shown)[: 5 * DEPTH * 2]]).view(-1, 5)
    assert rows[:, 2] == close(of_k['coefficients'].flatten())

    page.choose('[data-figure=attention] [data-key=image]', '1')
    page.choose('[data-figure=attention] [data-key=layer]', '2')
    attention = report.models['one'].images['class_attention'][1, 2]
    for found, expected in zip(page.heatmaps('attention'), attention, strict=True):
        assert found == close(expected)
    pictures = "return all('[data-figure=attention] img').map((img) => img.hidden)"
    assert page.run(pictures) == [True, False]
    matched = report.comparisons[0].projections['k']['matched_contributions']
    assert page.heatmaps('matched')[1] == close(matched)
    assert page.run('return errors') == []


@pytest.mark.slow
def test_hover_names_layer_atom_and_value(page, report, browser):
    page.choose('[data-figure=coefficients] select', 'coefficients')
    page.heatmaps('coefficients')
    area = browser.find_element('css selector', '[data-figure=coefficients] .x2y2 .nsewdrag')
    width, height = (area.size[side] for side in ('width', 'height'))
    mouse = webdriver.ActionChains(browser)
    mouse.move_to_element_with_offset(area, int(width / 4), int(height / 8)).pause(0.3).perform()
    script = "return document.querySelector('[data-figure=coefficients] .hoverlayer').textContent"
    value = report.models['one'].projections['k']['coefficients'][2, 1].item()
    shown = page.run(script).replace('\N{MINUS SIGN}', '-')
    assert shown.startswith('layer 2, atom 1')
    assert float(shown.removeprefix('layer 2, atom 1')) == float(f'{value:.4g}')


@pytest.mark.slow
def test_slider_and_button_move_through_the_epochs(page, report):
    recorded = report.history.projections['q']['coefficients']
    assert page.heatmaps('history')[0] == close(recorded[2])
    script = """const plot = document.querySelector('[data-figure=history] .plot');
        const step = plot.layout.sliders[0].steps[1];
        return Plotly.animate(plot, ...step.args).then(() => plot.layout.sliders[0].active);"""
    assert page.run(script) == 1
    assert page.heatmaps('history')[0] == close(recorded[1])
    play = """const plot = document.querySelector('[data-figure=history] .plot');
        const button = plot.querySelector('.updatemenu-button');
        return new Promise((done) => {
            plot.on('plotly_animated', () => done(plot.layout.sliders[0].active));
            button.dispatchEvent(new MouseEvent('click', { bubbles: true }));
        });"""
    assert page.run(play) == 2
    assert page.heatmaps('history')[0] == close(recorded[2])


@pytest.mark.slow
def test_numbers_are_downloaded_from_the_page(page, report):
    script = """let blob;
        URL.createObjectURL = (given) => { blob = given; return '#'; };
        HTMLAnchorElement.prototype.click = function click() { blob.filename = this.download; };
        document.getElementById('download').click();
        return blob.text().then((text) => [blob.filename, JSON.parse(text)]);"""
    assert page.run(script) == ['Atoms.json', json.loads(json.dumps(report.to_dict()))]


@pytest.mark.slow
def test_sections_without_data_are_hidden(page, report, browser, tmp_path):
    page.choose('#controls [data-key=model]', 'dense')
    of_atoms = {'coefficients', 'atoms', 'attention', 'activations', 'ablation'}
    assert page.sections() == [name for name in SECTIONS if name not in of_atoms]
    alone = Page(Report(history=report.history), tmp_path, browser)
    assert alone.sections() == ['history']
    recorded = report.history.projections['q']['coefficients']
    assert alone.heatmaps('history')[0] == close(recorded[2])
    assert alone.run('return errors') == []
