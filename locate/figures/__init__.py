"""Figures of what was located, a file a kind of result. Each draws a result, computes nothing and returns the axes."""

from locate.figures.average import effect_lines, panels, role_map, severed_bars
from locate.figures.heat_map import heat_map, side_by_side

__all__ = ["effect_lines", "heat_map", "panels", "role_map", "severed_bars", "side_by_side"]
