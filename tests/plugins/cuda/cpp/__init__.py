"""What plugins/cuda has in C++, against its reference in Python."""
