// Tables whose rows are sorted by a click on a heading.

/**
 * Fill a table. Columns are {name, text?, title?}; rows are {cells, selected}.
 * The order in which it was sorted stays when it is filled again.
 */
function fillTable(table, columns, rows) {
  table.rows_ = rows;
  const head = table.createTHead();
  if (head.dataset.columns !== columns.map((each) => each.name).join()) {
    head.dataset.columns = columns.map((each) => each.name).join();
    head.replaceChildren(headRow(table, columns));
    delete table.dataset.column;
  }
  table.columns_ = columns;
  writeRows(table);
  const row = table.querySelector('[aria-selected]');
  if (row) table.parentElement.scrollTop = row.offsetTop - 2 * row.offsetHeight;
}

function headRow(table, columns) {
  const row = document.createElement('tr');
  columns.forEach((each, index) => {
    const cell = row.appendChild(document.createElement('th'));
    cell.scope = 'col';
    cell.className = each.text ? 'text' : '';
    const button = cell.appendChild(document.createElement('button'));
    button.type = 'button';
    button.textContent = each.name;
    if (each.title) button.title = each.title;
    button.addEventListener('click', () => sortBy(table, index));
  });
  return row;
}

function sortBy(table, index) {
  const again = Number(table.dataset.column) === index && table.dataset.direction === '1';
  table.dataset.column = index;
  table.dataset.direction = again ? -1 : 1;
  writeRows(table);
}

function writeRows(table) {
  const { column: by, direction } = table.dataset;
  const cells = table.tHead.rows[0].cells;
  for (const cell of cells) cell.removeAttribute('aria-sort');
  let rows = table.rows_;
  if (by !== undefined) {
    cells[by].setAttribute('aria-sort', direction === '1' ? 'ascending' : 'descending');
    const sign = Number(direction);
    rows = [...rows].sort((one, other) => compareCells(one.cells[by], other.cells[by], sign));
  }
  const body = table.tBodies[0] ?? table.createTBody();
  body.replaceChildren(...rows.map((row) => bodyRow(row, table.columns_)));
}

/** Numbers by size, texts by the alphabet, and what is missing at the end in both directions. */
function compareCells(one, other, direction) {
  const missing = (one === undefined) - (other === undefined);
  if (missing || one === undefined) return missing;
  const number = typeof one === 'number';
  return direction * (number ? one - other : one.localeCompare(other, 'en', { numeric: true }));
}

function bodyRow({ cells, selected }, columns) {
  const row = document.createElement('tr');
  if (selected) row.setAttribute('aria-selected', 'true');
  cells.forEach((value, index) => {
    const cell = row.insertCell();
    cell.textContent = digits(value);
    cell.className = columns[index].text ? 'text' : '';
  });
  return row;
}

const SUMMARY = [
  { name: 'model', text: true },
  { name: 'projection', text: true },
  { name: 'atoms' },
  { name: 'used', title: 'effective number of atoms of the dictionary' },
  { name: 'of a layer', title: 'effective number of atoms of a layer, mean over layers' },
  { name: 'spectral', title: 'effective number of atoms, however they are mixed' },
  { name: 'dead', title: 'atoms that hardly any layer uses' },
  { name: 'doubled', title: 'pairs of equal atoms' },
  { name: 'cosine', title: 'mean cosine between the weights of different layers' },
  { name: 'eff. rank', title: 'effective rank of the weights, mean over layers' },
  { name: 'Gaussian', title: 'effective rank of a Gaussian matrix of the same shape' },
];

function summaryRows() {
  return Object.entries(report.models).flatMap(([name, of]) =>
    Object.entries(of.projections).map(([projection, values]) => {
      const key = dictionaryName(projection, of);
      const cells = [name, label(projection)];
      cells.push(values.coefficients?.[0].length, of.dictionaries[key]?.used_atoms);
      cells.push(values.effective_atoms && mean(values.effective_atoms), values.spectral_atoms);
      cells.push(of.dead_atoms[key]?.length, of.doubled_atoms[key]?.length);
      cells.push(
        meanOffDiagonal(values.weight_similarity), mean(values.effective_rank),
        values.gaussian_effective_rank,
      );
      return { cells, selected: name === state.model && projection === state.projection };
    }),
  );
}

function atomRows({ coefficients = [], contributions, shares }) {
  return coefficients.flatMap((row, layer) =>
    row.map((value, atom) => ({
      cells: [layer, atom, value, contributions[layer][atom], shares[layer][atom]],
      selected: layer === state.layer,
    })),
  );
}

const BY_LAYER = [
  'weight_norm', 'effective_rank', 'stable_rank', 'effective_atoms', 'effective_atoms_entropy',
  'residual_share',
];

function layerRows(values, names) {
  return range(model().depth).map((layer) => ({
    cells: [layer, ...names.map((name) => values[name][layer])],
    selected: layer === state.layer,
  }));
}

function fillTables() {
  const values = arrays();
  fillTable(byId('table-summary'), SUMMARY, summaryRows());
  const heads = ['layer', 'atom', 'coefficient', 'contribution', 'share'];
  fillTable(byId('table-atoms'), heads.map((name) => ({ name })), atomRows(values));
  byId('table-atoms').closest('div:not(.scroll)').hidden = !values.coefficients;
  const names = BY_LAYER.filter((name) => name in values);
  const columns = ['layer', ...names].map((name) => ({
    name: name.replaceAll('_', ' '),
    title: report.quantities[name]?.text,
  }));
  fillTable(byId('table-layers'), columns, layerRows(values, names));
  byId('summary').hidden = byId('numbers').hidden = !Object.keys(report.models).length;
}
