"""Recipe -> stages -> bundle; validation, benchmark, report; the `kvfold` command line."""
