"""What models write, as HTML that a page may show: Markdown, code in colors, formulas, citations; whole or as it grows.

`render` and `render_code` are for text that is complete, `IncrementalRenderer` for text that is being written.
Importing this package loads markdown-it, Pygments, math-core and nh3: only what shows a page does it.
"""

from glm4.markup.code import render_code
from glm4.markup.incremental import CodeAdded, IncrementalRenderer, Update
from glm4.markup.rendering import VERSION, render

__all__ = ["VERSION", "CodeAdded", "IncrementalRenderer", "Update", "render", "render_code"]
