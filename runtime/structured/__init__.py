"""What a reply may be, and what it is made of: grammars over tokens, tool calls, reasoning."""
