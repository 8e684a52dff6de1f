"""What every package shares: the FoldPlan and what follows from it, the step, errors, the version."""
