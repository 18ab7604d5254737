"""Routes and service addresses to a BGP fabric. Built on the core; see ARCHITECTURE.md."""
