"""Tests of the tiers below the pool."""
