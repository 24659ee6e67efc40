"""Measure a model against another: time, memory and sizes (`masa-vit benchmark`)."""

from masa_vit.benchmark.measurement import Measurement
from masa_vit.benchmark.subjects import TIMM, Kind, Spec, Subject

__all__ = ['TIMM', 'Kind', 'Measurement', 'Spec', 'Subject']
