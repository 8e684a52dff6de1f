"""Search, frontier, ablation, lm-eval."""
