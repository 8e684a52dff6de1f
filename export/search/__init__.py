"""Search a plan: what changing each layer costs, measured, and the plan that costs least within its bytes."""
