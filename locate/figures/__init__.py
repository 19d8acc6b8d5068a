"""Figures of what was located, a file a kind of result. Each draws a result, computes nothing and returns the axes."""

from locate.figures.average import effect_lines, panels, role_map, severed_bars
from locate.figures.direct import attribution_bars, attribution_map
from locate.figures.heat_map import heat_map, side_by_side
from locate.figures.knockout import knockout_lines
from locate.figures.lens import lens_table
from locate.figures.screen import estimates, screen_map

__all__ = [
    "attribution_bars",
    "attribution_map",
    "effect_lines",
    "estimates",
    "heat_map",
    "knockout_lines",
    "lens_table",
    "panels",
    "role_map",
    "screen_map",
    "severed_bars",
    "side_by_side",
]
