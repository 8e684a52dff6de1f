"""Int8Embedding: rows of an int8 table, which may be the head's own weights, as float32."""
