"""A conversation in the terminal: what `kvfold run` and `kvfold demo` show of a session."""
