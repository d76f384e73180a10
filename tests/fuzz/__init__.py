"""Fuzzing of the modules without I/O: what the targets are, and what a finding is, stands in README.md.

Nothing here needs atheris to be imported, and nothing imports the tests: ``python -m fuzz`` runs in the folder
``tests``, where the package under test is the installed one.
"""
