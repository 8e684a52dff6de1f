"""What a server must bear: bodies, bytes and clients that are wrong in every way we could think of."""
