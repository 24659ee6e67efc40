// The page: controls, sections, and which figure is drawn when.

const PLOTLY = {
  displaylogo: false,
  modeBarButtons: [['toImage']],
  toImageButtonOptions: { format: 'svg' },
};
const PRINTED_WIDTH = 690; // of A4 within its margins
const stale = new Set(Object.keys(FIGURES));
const inView = new Set();
let printing = false;

function draw(id) {
  const figure = FIGURES[id];
  const div = byId(id);
  if (!stale.has(id) || div.parentElement.hidden) return;
  stale.delete(id);
  const { data, layout } = figure.build(printing ? PRINTED_WIDTH : div.clientWidth);
  const first = !div.classList.contains('js-plotly-plot');
  Plotly.react(div, data, layout, PLOTLY);
  if (first && figure.layer) {
    div.on('plotly_click', ({ points: [point] }) => select('layer', Number(point[figure.layer])));
  }
}

/** Hide what has no data, keep the place of what is to come, and draw what is looked at. */
function refresh() {
  for (const [id, figure] of Object.entries(FIGURES)) {
    const div = byId(id);
    div.parentElement.hidden = !figure.needs();
    stale.add(id);
  }
  for (const section of document.querySelectorAll('main section:has(figure)')) {
    section.hidden = ![...section.querySelectorAll('figure')].some((figure) => !figure.hidden);
  }
  for (const [id, figure] of Object.entries(FIGURES)) {
    const div = byId(id);
    if (div.closest('[hidden]')) continue;
    div.style.minHeight = `${figure.build(div.clientWidth).layout.height}px`;
  }
  for (const each of document.querySelectorAll('.selected')) {
    each.textContent = `projection ${label(state.projection)}`;
  }
  byId('selected-layer').textContent = state.layer;
  showPicture();
  fillQuantities();
  fillTables();
  fillContents();
  inView.forEach(draw);
}

function showPicture() {
  const source = report.pictures[state.model]?.[state.image];
  byId('picture').hidden = !source;
  if (source) byId('picture').src = source;
}

function fillQuantities() {
  for (const list of document.querySelectorAll('.quantities')) {
    const shown = list.dataset.of.split(' ').filter((id) => FIGURES[id].needs());
    const names = new Set(shown.flatMap((id) => FIGURES[id].quantities()));
    list.replaceChildren(...[...names].map(describe).filter(Boolean));
  }
}

function fillContents() {
  const shown = [...document.querySelectorAll('main section')].filter((section) => !section.hidden);
  byId('contents').replaceChildren(...shown.map((section) => {
    const link = document.createElement('a');
    link.href = `#${section.id}`;
    link.textContent = section.querySelector('h2').textContent;
    return link;
  }));
}

function fillSelect(select, options, value) {
  select.replaceChildren(...options.map(([key, text]) => new Option(text, key)));
  select.value = value;
  select.parentElement.hidden = !options.length;
}

const numbered = (count, name = String) => range(count).map((index) => [index, name(index)]);

/** Bring the options and the selection in line with the model that is selected. */
function fillControls() {
  if (!projections().includes(state.projection)) [state.projection] = projections();
  const rows = Object.values(historyOf()).find((of) => Array.isArray(of[0]))?.[0].length;
  const depth = model().depth || rows || 0;
  state.layer = Math.min(state.layer, Math.max(0, depth - 1));
  state.image = Math.min(state.image, Math.max(0, (images().class_attention?.length ?? 0) - 1));
  fillSelect(byId('model'), Object.keys(report.models).map((name) => [name, name]), state.model);
  fillSelect(
    byId('projection'), projections().map((name) => [name, label(name)]), state.projection,
  );
  fillSelect(byId('layer'), numbered(depth), state.layer);
  fillSelect(byId('image'), numbered(images().class_attention?.length ?? 0), state.image);
  for (const option of byId('ablation-measure').options) {
    option.disabled = !projectionsWith(option.value).length;
  }
}

function select(key, value) {
  state[key] = value;
  fillControls();
  refresh();
}

function showEpoch(place) {
  state.epoch = place;
  byId('epoch').value = place;
  byId('epoch-shown').textContent = report.history.epochs[place];
  for (const id of ['plot-history', 'plot-history-atoms', 'plot-history-use']) {
    stale.add(id);
    if (inView.has(id)) draw(id);
  }
}

let player = null;

function play(on) {
  clearInterval(player);
  const last = report.history.epochs.length - 1;
  const next = () => (state.epoch < last ? showEpoch(state.epoch + 1) : play(false));
  player = on ? setInterval(next, 400) : null;
  byId('play').setAttribute('aria-pressed', on);
  byId('play').textContent = on ? '⏸ Pause' : '▶ Play';
  if (on && state.epoch === last) showEpoch(0);
}

function setUpHistory() {
  const names = recordedNames();
  [state.recorded = null] = names;
  fillSelect(byId('recorded'), names.map((name) => [name, words(name)]), state.recorded);
  if (!report.history) return;
  byId('run').textContent = report.history.run;
  byId('epoch').max = report.history.epochs.length - 1;
  showEpoch(report.history.epochs.length - 1);
  byId('epoch').addEventListener('input', ({ target }) => {
    play(false);
    showEpoch(Number(target.value));
  });
  byId('play').addEventListener('click', () => play(player === null));
}

function element(parent, tag, className, text = '') {
  const child = parent.appendChild(document.createElement(tag));
  child.className = className;
  child.textContent = text;
  return child;
}

const count = (value) => value.toLocaleString('en');

function addCard(name, of) {
  const card = element(byId('models'), 'article', 'card');
  element(card, 'h3', '', name);
  const { attention_parameters: stored, dense_attention_parameters: dense } = of;
  element(card, 'p', '', `${of.depth} layers${of.num_heads ? `, ${of.num_heads} heads` : ''}`);
  const percent = `${((100 * stored) / dense).toFixed(1)} %`;
  element(card, 'p', '', `${count(stored)} of ${count(dense)} attention parameters (${percent})`);
  const meter = element(card, 'div', 'meter');
  element(meter, 'div', '').style.width = `${Math.min(100, (100 * stored) / dense)}%`;
  if (report.notes[name]) element(card, 'p', 'note', report.notes[name]);
  const badges = element(card, 'p', '');
  const badge = (kind, text) => element(badges, 'span', `badge ${kind}`, text);
  for (const [key, atoms] of Object.entries(of.dead_atoms)) {
    if (atoms.length) badge('bad', `dead in ${label(key)}: ${atoms.join(', ')}`);
  }
  for (const [key, pairs] of Object.entries(of.doubled_atoms)) {
    const equal = pairs.map((pair) => pair.join(' = ')).join(', ');
    if (equal) badge('bad', `doubled in ${label(key)}: ${equal}`);
  }
  if (!Object.keys(of.dictionaries).length) badge('plain', 'dense: nothing is shared');
  else if (!badges.children.length) badge('good', 'no dead or doubled atoms');
}

function download() {
  const blob = new Blob([byId('report').textContent], { type: 'application/json' });
  const link = document.createElement('a');
  link.href = URL.createObjectURL(blob);
  link.download = `${document.title}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

/** Draw for another width; those out of view when they come into it. */
function drawAll(forPrint) {
  printing = forPrint;
  Object.keys(FIGURES).forEach((id) => stale.add(id));
  (forPrint ? Object.keys(FIGURES) : [...inView]).forEach(draw);
}

function watch() {
  const observer = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      inView[isIntersecting ? 'add' : 'delete'](target.id);
      if (isIntersecting) draw(target.id);
    }
  }, { rootMargin: '300px' });
  Object.keys(FIGURES).forEach((id) => observer.observe(byId(id)));
  let width = document.body.clientWidth;
  new ResizeObserver(() => {
    if (printing || document.body.clientWidth === width) return;
    width = document.body.clientWidth;
    refresh();
  }).observe(document.body);
  window.addEventListener('beforeprint', () => drawAll(true));
  window.addEventListener('afterprint', () => drawAll(false));
}

function start() {
  Object.entries(report.models).forEach(([name, of]) => addCard(name, of));
  const pairs = report.comparisons.map(({ first, second }) => `${first} beside ${second}`);
  fillSelect(byId('pair'), [...pairs.entries()], 0);
  const bound = {
    model: 'model', projection: 'projection', layer: 'layer', quantity: 'quantity', order: 'order',
    scale: 'scale',
    image: 'image', 'ablation-measure': 'measure', pair: 'pair', recorded: 'recorded',
  };
  const numbers = ['layer', 'image', 'pair'];
  for (const [id, key] of Object.entries(bound)) {
    byId(id).addEventListener('change', ({ target: { value } }) => {
      select(key, numbers.includes(key) ? Number(value) : value);
    });
  }
  byId('download').addEventListener('click', download);
  byId('version').textContent = report.masa_vit;
  byId('schema').textContent = report.schema;
  document.querySelectorAll('main section figure').forEach((figure) => {
    figure.setAttribute('aria-label', figure.closest('section').querySelector('h2').textContent);
  });
  setUpHistory();
  fillControls();
  refresh();
  watch();
}

start();
