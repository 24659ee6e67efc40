"""Measure a model against another: time, memory and sizes (`masa-vit benchmark`)."""

from masa_vit.benchmark.subjects import TIMM, Kind, Spec, Subject
from masa_vit.benchmark.timing import Measurement

__all__ = ['TIMM', 'Kind', 'Measurement', 'Spec', 'Subject']
