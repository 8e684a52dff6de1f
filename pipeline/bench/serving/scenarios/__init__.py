"""What is shown of a server, a scenario a file; `all_scenarios.py` lists them."""
