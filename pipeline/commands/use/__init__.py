"""Commands that run or show what is there."""
