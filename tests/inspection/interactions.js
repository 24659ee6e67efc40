// Does what a reader does with the page, and returns what is then seen.

const results = {};
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** Wait until `condition` holds; the test's time limit ends it. */
async function until(condition) {
  while (!condition()) await new Promise(requestAnimationFrame);
}

/** The plotly figure of that name, scrolled to and drawn. */
async function figure(id) {
  const div = document.getElementById(id);
  div.scrollIntoView();
  await until(() => div.data && !stale.has(id)); // drawn a frame after it comes into view
  return div;
}

function choose(id, value) {
  const select = document.getElementById(id);
  select.value = value;
  select.dispatchEvent(new Event('change', { bubbles: true }));
}

const cells = (id, index) =>
  Array.from(document.getElementById(id).tBodies[0].rows, (row) => row.cells[index].textContent);
const heading = (id, name) =>
  [...document.getElementById(id).tHead.rows[0].cells].find((cell) => cell.textContent === name);
const shownSections = () =>
  Array.from(document.querySelectorAll('main section:not([hidden])'), (each) => each.id);
const heatmaps = (div) =>
  div.data.filter((trace) => trace.type === 'heatmap').map((trace) => trace.z);

/** Let the mouse do something to an element, at parts of the width and height of `of`. */
async function mouse(what, element, x, y, of = element) {
  const box = of.getBoundingClientRect();
  const place = { clientX: box.left + box.width * x, clientY: box.top + box.height * y };
  element.dispatchEvent(new MouseEvent(what, { ...place, bubbles: true, view: window }));
  await pause(100);
}

async function explore() {
  results.drawnAtFirst = [...document.querySelectorAll('.js-plotly-plot')].map((each) => each.id);
  results.sections = shownSections();
  results.overflow = document.documentElement.scrollWidth - window.innerWidth;

  results.sorted = {};
  for (const name of ['cosine', 'cosine', 'projection']) {
    const head = heading('table-summary', name);
    head.querySelector('button').click();
    const key = `${name} ${head.getAttribute('aria-sort')}`;
    results.sorted[key] = cells('table-summary', head.cellIndex);
  }
  results.modelsByProjection = cells('table-summary', 0);

  const panels = await figure('plot-coefficients');
  results.coefficients = heatmaps(panels);
  results.scale = [panels.layout.coloraxis.cmin, panels.layout.coloraxis.cmax];
  const area = panels.querySelector('.x2y2 .nsewdrag');
  await mouse('mousemove', area, 0.75, 0.625); // second panel: row 2 of 4, column 1 of 2
  results.hover = panels.querySelector('.hoverlayer').textContent;
  await mouse('mousedown', area, 0.75, 0.625);
  await mouse('mouseup', document.querySelector('.dragcover') ?? area, 0.75, 0.625, area);
  results.clickedLayer = document.getElementById('layer').value;
  choose('quantity', 'canonical_coefficients');
  results.canonical = heatmaps(await figure('plot-coefficients'));

  choose('projection', 'k');
  results.markedRows = document.querySelectorAll('#table-atoms tr[aria-selected]').length;
  results.shares = cells('table-atoms', 4);
  const spectra = await figure('plot-spectra');
  const bold = spectra.data[spectra.data.length - 1];
  results.spectrum = { name: bold.name, x: bold.x, y: bold.y };
  choose('order', 'depth');
  results.byDepth = heatmaps(await figure('plot-layers'));
  choose('order', 'leaves');
  const byTree = await figure('plot-layers');
  results.byTree = { z: heatmaps(byTree)[0], leaves: byTree.data[0].x.map(Number) };
  results.tree = byTree.data[byTree.data.length - 1].x;

  choose('layer', '1');
  choose('image', '1');
  results.attention = heatmaps(await figure('plot-attention'));
  choose('ablation-measure', 'ablation_accuracy');
  results.ablation = heatmaps(await figure('plot-ablation'));
  results.everywhere = (await figure('plot-ablation-everywhere')).data.map((bars) => bars.y);
  results.matched = heatmaps(await figure('plot-matched'));

  await figure('plot-history');
  const slider = document.getElementById('epoch');
  slider.value = 1;
  slider.dispatchEvent(new Event('input'));
  results.atEpoch = {
    shown: document.getElementById('epoch-shown').textContent,
    z: heatmaps(await figure('plot-history')),
  };
  document.getElementById('play').click();
  results.playing = document.getElementById('play').getAttribute('aria-pressed');
  await until(() => document.getElementById('play').getAttribute('aria-pressed') === 'false');
  results.played = {
    pressed: document.getElementById('play').getAttribute('aria-pressed'),
    shown: document.getElementById('epoch-shown').textContent,
    z: heatmaps(document.getElementById('plot-history')),
  };

  choose('model', 'dense');
  results.sectionsOfDense = shownSections();
  window.dispatchEvent(new Event('beforeprint'));
  results.notPrinted = [...document.querySelectorAll('figure')]
    .filter((each) => !each.closest('[hidden]') && !each.querySelector('svg')).length;
  window.dispatchEvent(new Event('afterprint'));

  let blob = null;
  URL.createObjectURL = (given) => { blob = given; return '#'; };
  HTMLAnchorElement.prototype.click = function click() { results.downloadName = this.download; };
  document.getElementById('download').click();
  results.download = JSON.parse(await blob.text());
}

return explore().then(() => ({ ...results, errors }));
