"""Measure geventws and its peers side by side; README.md says how, and how to read what comes out."""
