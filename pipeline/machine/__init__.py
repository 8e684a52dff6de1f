"""This machine: which targets it can build and run, its GPUs, and what its engines are doing."""
