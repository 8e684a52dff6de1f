"""Tests of a cluster of servers."""
