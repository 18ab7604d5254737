"""Network policies: from a node's view of them (``pycni.view.policies``) to the kernel."""
