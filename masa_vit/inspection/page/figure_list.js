// All figures: what each needs, what it shows, and where in a point a click finds the layer.

const has = (...names) => names.every((name) => name in arrays());
const ofRun = (name) => Boolean(report.history) && name in historyOf();

const FIGURES = {
  'plot-coefficients': {
    build: coefficientPanels, needs: () => projectionsWith(state.quantity).length,
    quantities: () => [state.quantity], layer: 'y',
  },
  'plot-layers': {
    build: layerSimilarities, needs: () => has('weight_similarity', 'linkage') && model().depth > 1,
    quantities: () => ['weight_similarity', 'coefficient_similarity'].filter((name) => has(name)),
    layer: 'y',
  },
  'plot-effective-atoms': {
    build: effectiveAtoms, needs: () => projectionsWith('effective_atoms').length,
    quantities: () => ['effective_atoms'], layer: 'x',
  },
  'plot-effective-rank': {
    build: effectiveRanks, needs: () => projectionsWith('effective_rank').length,
    quantities: () => ['effective_rank'], layer: 'x',
  },
  'plot-spectra': {
    build: weightSpectra, needs: () => has('singular_values'),
    quantities: () => ['singular_values'],
  },
  'plot-atom-spectra': {
    build: atomSpectra, needs: () => 'atom_singular_values' in dictionary(),
    quantities: () => ['atom_singular_values'],
  },
  'plot-heads': {
    build: headNorms, needs: () => projectionsWith('head_norms').length,
    quantities: () => ['head_norms'], layer: 'y',
  },
  'plot-atoms': {
    build: atomPanels, needs: () => 'atom_use' in dictionary(),
    quantities: () => ['atom_use', 'atom_overlap', 'atom_effective_rank'],
  },
  'plot-attention': {
    build: attentionMaps, needs: () => 'class_attention' in images(),
    quantities: () => ['class_attention'],
  },
  'plot-distance': {
    build: attentionDistances, needs: () => 'attention_distance' in images(),
    quantities: () => ['attention_distance'], layer: 'x',
  },
  'plot-cka': {
    build: blockSimilarity, needs: () => 'cka' in images(), quantities: () => ['cka'], layer: 'y',
  },
  'plot-ablation': {
    build: ablationPanels, needs: () => projectionsWith(state.measure).length,
    quantities: () => [state.measure], layer: 'y',
  },
  'plot-ablation-everywhere': {
    build: ablationEverywhere, needs: () => projectionsWith(`${state.measure}_everywhere`).length,
    quantities: () => [`${state.measure}_everywhere`],
  },
  'plot-matched': {
    build: matchedContributions,
    needs: () => 'matched_contributions' in compared() && 'contributions' in ofFirst(),
    quantities: () => ['contributions', 'matched_contributions', 'matched_cosine'], layer: 'y',
  },
  'plot-cosine': {
    build: weightCosines,
    needs: () => Object.values(comparison()?.projections ?? {}).some((of) => 'other_cosine' in of),
    quantities: () => ['other_cosine', 'other_distance'], layer: 'x',
  },
  'plot-angles': {
    build: spanAngles,
    needs: () => angleNames().length,
    quantities: angleNames,
  },
  'plot-history': {
    build: recordedPanels, needs: () => state.recorded !== null, quantities: () => [state.recorded],
    layer: 'y',
  },
  'plot-history-atoms': {
    build: recordedAtoms, needs: () => ofRun('effective_atoms'),
    quantities: () => ['effective_atoms'],
  },
  'plot-history-use': { build: recordedUse, needs: () => ofRun('atom_use'), quantities: () => ['atom_use'] },
};
