"""Look at what is shared: coefficients per layer, parameter counts, pictures."""

from masa_vit.analysis.extract import coefficients
from masa_vit.analysis.parameters import ParameterCounts, count_parameters
from masa_vit.analysis.plots import plot_coefficients, plot_curves

__all__ = [
    'ParameterCounts',
    'coefficients',
    'count_parameters',
    'plot_coefficients',
    'plot_curves',
]
