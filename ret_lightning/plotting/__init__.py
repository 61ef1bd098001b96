"""Figures of matplotlib that display texts from data and config as they are."""
