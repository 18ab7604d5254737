"""Service proxy: virtual addresses of Services on every node. Built on the core; see ARCHITECTURE.md."""
