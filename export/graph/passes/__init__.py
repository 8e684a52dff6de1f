"""Graph passes, one a file: `apply(model, ...)` rewrites in place and returns how often it matched."""
