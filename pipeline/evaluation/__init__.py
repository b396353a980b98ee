"""Evaluation: samples of held-out problems, pass@k with intervals, and policies compared."""
