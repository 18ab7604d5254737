"""What is wrong, or small for its task, on the nodes of a network: pure rules over values read from their kernels."""
