"""`kvfold monitor`: what the machine's GPUs, its CPU and the running engines are doing."""
