"""Commands other than training and evaluation: `doctor`, `export` and `grade`."""
