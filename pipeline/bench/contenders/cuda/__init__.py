"""Peers on an NVIDIA GPU, a module each, as those beside this folder."""
