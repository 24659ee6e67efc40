"""Pictures of what `masa_vit.inspection` computes, and of trainings (extra `inspect`: matplotlib)."""

from masa_vit.inspection.plots.curves import plot_curves
from masa_vit.inspection.plots.history_plot import draw_history, write_animation
from masa_vit.inspection.plots.matrices import heatmaps, plot_coefficients

__all__ = ['draw_history', 'heatmaps', 'plot_coefficients', 'plot_curves', 'write_animation']
