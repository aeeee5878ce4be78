"""Every figure and table type once, in one style: a module a document, beside the experiment of the same name.

A figure carries its caption and its alt text wherever it is shown.
"""

from hpatlib.plots import leukemia, transfer, ultrasound, why
from hpatlib.plots.base import Figure, Table, panels

__all__ = ["Figure", "Table", "leukemia", "panels", "transfer", "ultrasound", "why"]
