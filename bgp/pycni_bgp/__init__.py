"""Routes and service addresses to a BGP fabric. Built on the core; see ARCHITECTURE.md.

    settings      what the administrator wants
    annotations   what nodes say of themselves (kube-router's keys)
    neighbours    who speaks with whom
    services      which addresses of Services this node announces
    rib           what is told to whom, what is accepted, which paths are best

All of this is pure. Engines and the agent's component are not here yet.
"""
