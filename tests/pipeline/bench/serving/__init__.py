"""`kvfold bench --serve` against servers that only look like one."""
