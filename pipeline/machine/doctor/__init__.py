"""What this machine can run, and why not: small checks, each with its finding and the next action."""
