"""Figures as data with a function that paints them; a figure of the paper has a file of its number."""
