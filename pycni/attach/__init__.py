"""What a pod's attachment has to look like: pure values compiled from configuration, allocation and node."""
