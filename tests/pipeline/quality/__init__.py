"""What is measured of a bundle."""
