"""Benchmarks: one module each, every one giving rows of the common form in `form.py`."""
