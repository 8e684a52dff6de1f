"""Scheduling: requests, continuous batching with chunked prefill, and the packed inputs of a step."""
