"""Figures of one run, as PNG: its data, how it learned, what it gets wrong."""
