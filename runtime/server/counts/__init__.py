"""What is counted while requests run, for whoever asks later."""
