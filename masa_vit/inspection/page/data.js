'use strict';
// The report, what of it is selected, and how to reach the numbers. Nothing here draws.

const report = JSON.parse(document.getElementById('report').textContent);
const NO_MODEL = {
  depth: 0, projections: {}, dictionaries: {}, dictionary_of: {}, images: {}, indices: {},
};

const state = {
  model: Object.keys(report.models)[0],
  projection: null,
  layer: 0,
  quantity: 'coefficients',
  order: 'leaves',
  scale: 'linear',
  image: 0,
  measure: 'ablation_kl',
  pair: 0,
  recorded: null,
  epoch: 0, // place in history.epochs
};

const byId = (id) => document.getElementById(id);
const model = () => report.models[state.model] ?? NO_MODEL;
const arrays = (name = state.projection) => model().projections[name] ?? {};
const images = () => model().images;
const comparison = () => report.comparisons[state.pair];
const historyOf = (name = state.projection) => report.history?.projections[name] ?? {};

function projections() {
  const names = Object.keys(model().projections);
  return names.length ? names : Object.keys(report.history?.projections ?? {});
}

/** Those projections of the model that have all of these quantities. */
function projectionsWith(...quantities) {
  return Object.keys(model().projections).filter((name) =>
    quantities.every((quantity) => quantity in arrays(name)),
  );
}

/** Name of the dictionary a projection draws on; undefined for a dense one. */
const dictionaryName = (name = state.projection, of = model()) => of.dictionary_of[name];

const dictionary = (name) => model().dictionaries[dictionaryName(name)] ?? {};

const range = (count) => Array.from({ length: count }, (_, index) => index);
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
const column = (matrix, index) => matrix.map((row) => row[index]);

/** Largest of numbers in arrays of any depth, without their signs. */
function largest(values) {
  if (!Array.isArray(values)) return Math.abs(values);
  return values.reduce((top, each) => Math.max(top, largest(each)), 0);
}

function smallest(values) {
  return Array.isArray(values) ? Math.min(...values.map(smallest)) : values;
}

function meanOffDiagonal(matrix) {
  const count = matrix.length;
  const rest = matrix.flatMap((row, index) => row.filter((_, other) => other !== index));
  return count > 1 ? mean(rest) : undefined;
}

const label = (projection) => (projection.length === 1 ? projection.toUpperCase() : projection);

/** Four digits, and a minus sign that is one. */
function digits(value) {
  if (value === undefined || value === null) return '–';
  if (typeof value !== 'number') return value;
  if (Number.isInteger(value)) return String(value).replace('-', '−');
  const size = Math.abs(value);
  const text = size >= 1e-3 && size < 1e5 ? value.toPrecision(4) : value.toExponential(3);
  return text.replace('-', '−');
}

/** Of a linkage of scipy: the order of its leaves, and the lines of its tree. */
function tree(linkage, depth) {
  const members = range(depth).map((layer) => [layer]);
  for (const [left, right] of linkage) members.push([...members[left], ...members[right]]);
  const leaves = members[members.length - 1];
  const height = range(depth).map(() => 0);
  const place = range(depth).map((layer) => leaves.indexOf(layer));
  const lines = linkage.map(([left, right, distance]) => {
    const line = [left, right].map((cluster) => ({ from: height[cluster], place: place[cluster] }));
    height.push(distance);
    place.push(mean(line.map((end) => end.place)));
    return { distance, ends: line };
  });
  return { leaves, lines };
}

const SURVIVES = { mixing: 'mixing', scale: 'scale', none: 'not invariant' };

/** What a quantity is and what it is invariant to, as an element of a list. */
function describe(name) {
  const known = report.quantities[name];
  if (!known) return null;
  const item = document.createElement('li');
  const chip = item.appendChild(document.createElement('b'));
  chip.className = `chip ${known.invariant}`;
  chip.textContent = SURVIVES[known.invariant];
  item.append(` ${name.replaceAll('_', ' ')}: ${known.text}`);
  return item;
}
