"""KV bytes against KL and perplexity, for a ladder of recipes that fold one model ever deeper."""
