"""Figures of what was located, a file a kind of result. Each draws a result, computes nothing and returns the axes."""

from locate.figures.heat_map import heat_map, side_by_side

__all__ = ["heat_map", "side_by_side"]
