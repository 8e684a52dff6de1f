"""What every room shows with: tables, progress, plans, axes and templates."""
