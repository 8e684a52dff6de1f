"""Questions that take several bundles or methods: search, frontier, ablation, and others' tasks."""
