"""Training: a run from start to summary, TRL's trainer with this project's hooks, and supervised warm-up."""
