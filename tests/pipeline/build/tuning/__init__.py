"""Tests of `kvfold tune` with a stand-in for the GPU, the compiler and the clock."""
