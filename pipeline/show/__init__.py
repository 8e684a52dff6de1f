"""What every room shows with: tables and their renderers, progress, plans, axes and templates."""
