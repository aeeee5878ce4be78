r"""Mathematics as MathML, made when the book is built: browsers draw it without a script, a font or a network.

A Sphinx extension, the ``html_math_renderer`` of ``_config.yml``. A formula that latex2mathml cannot read is a warning,
which fails the build: write it otherwise.
"""

import re

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number
from sphinx.writers.html5 import HTML5Translator

logger = logging.getLogger(__name__)
TIGHT = re.compile(
    r"<mo((?: stretchy=\"false\")?>&#x000(?:7C|2F);)"
)  # |x| and 1/255 have no space around their strokes


def mathml(node: nodes.math | nodes.math_block, display: str) -> str:
    r"""``node`` as a ``<math>`` element; what is not understood is left in it as TeX, with a backslash or an ``&``."""
    tex = node.astext()
    if display == "block":
        tex = re.sub(r"\\(min|max)_", r"\\\1\\limits_", tex)  # below the word, as TeX has it
    try:
        made = convert(tex, display=display)
    except Exception as error:  # of many kinds, none of which names the formula
        made = f"\\ {error!r}"
    if "\\" in made or "<mi>&</mi>" in made:
        logger.warning("cannot draw the formula %r", tex, location=node)
    return TIGHT.sub(r'<mo lspace="0" rspace="0"\1', made)


def inline(self: HTML5Translator, node: nodes.math) -> None:
    self.body += [self.starttag(node, "span", "", CLASS="math"), mathml(node, "inline"), "</span>"]
    raise nodes.SkipNode


def block(self: HTML5Translator, node: nodes.math_block) -> None:
    self.body.append(self.starttag(node, "div", "", CLASS="math", tabindex="0"))
    if node["number"]:
        self.body.append(f'<span class="eqno">({get_node_equation_number(self, node)})')
        self.add_permalink_ref(node, "Link to this equation")
        self.body.append("</span>")
    self.body.append(f"{mathml(node, 'block')}</div>\n")
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
