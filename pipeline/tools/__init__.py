"""Commands beside training and evaluation: `doctor`, `export` and `grade`."""
