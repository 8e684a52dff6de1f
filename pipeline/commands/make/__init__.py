"""Commands that make a bundle or a part of one."""
