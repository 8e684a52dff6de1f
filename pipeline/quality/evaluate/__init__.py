"""What a fold costs: perplexity by length, KL beside a noise floor, retrieval by depth, last words."""
