"""What a program calls: an LLM, its sessions, and both for asyncio, as text over the loop."""
