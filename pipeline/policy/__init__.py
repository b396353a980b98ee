"""The policy: which model, from where, in how much memory; loaded with its adapter and its engine."""
