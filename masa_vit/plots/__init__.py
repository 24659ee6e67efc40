"""Pictures of what `masa_vit.analysis` computes, and of trainings (extra `inspect`: matplotlib)."""

from masa_vit.plots.curves import plot_curves
from masa_vit.plots.heatmaps import heatmaps, plot_coefficients
from masa_vit.plots.history import draw_history, write_animation

__all__ = ['draw_history', 'heatmaps', 'plot_coefficients', 'plot_curves', 'write_animation']
