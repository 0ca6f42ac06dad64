"""Losses that other projects import from here."""
