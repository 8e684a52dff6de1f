"""One process per contender, in its own Python; jobs and answers travel as JSON."""
