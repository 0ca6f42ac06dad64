"""Layers that other projects import from here."""
