"""What all figures share: figures and tables with captions and alt text, one style, and the kinds of charts.

A document's own figures stand in its folder; nothing here knows a document, and nothing here runs a model.
"""

from hpatlib.plots.answers import answer, findings, origin, real
from hpatlib.plots.base import Figure, Table, stamp
from hpatlib.plots.charts import panels

__all__ = ["Figure", "Table", "answer", "findings", "origin", "panels", "real", "stamp"]
