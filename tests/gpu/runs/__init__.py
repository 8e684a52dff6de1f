"""`make gpu-check` and `make gpu-bench`: groups in processes of their own, results that survive a cut."""
