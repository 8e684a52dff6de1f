"""Healing: training what folding changed, and the adapter that carries the result."""
