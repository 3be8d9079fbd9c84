"""Towers, pyramids, hierarchies, bridges and the selector."""
