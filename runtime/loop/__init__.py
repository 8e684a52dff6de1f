"""The engine's one owner: it runs steps, and gives each request its tokens."""
