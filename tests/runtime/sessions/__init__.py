"""Tests of `runtime/sessions`."""
