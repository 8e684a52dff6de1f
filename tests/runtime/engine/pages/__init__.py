"""Tests of page stores: slabs, copies, and what memory is given back."""
