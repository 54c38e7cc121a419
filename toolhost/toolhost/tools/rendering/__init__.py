"""Rendering: bytes of logs and facts of records to text for a model. Pure functions; the log keeps every byte."""

from toolhost.tools.rendering.binary import binary_streams, is_binary, kind
from toolhost.tools.rendering.cut import clip, escaped_length
from toolhost.tools.rendering.facts import ending, seconds, size, trailer
from toolhost.tools.rendering.lines import Line, LineFilter
from toolhost.tools.rendering.masking import Masker
from toolhost.tools.rendering.view import OutputView, Reader, Rendered, render
from toolhost.tools.rendering.visible import one_line, show

__all__ = [
    "Line",
    "LineFilter",
    "Masker",
    "OutputView",
    "Reader",
    "Rendered",
    "binary_streams",
    "clip",
    "ending",
    "escaped_length",
    "is_binary",
    "kind",
    "one_line",
    "render",
    "seconds",
    "show",
    "size",
    "trailer",
]
