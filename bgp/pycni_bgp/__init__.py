"""Routes and service addresses to a BGP fabric. Built on the core; see ARCHITECTURE.md.

    settings      what the administrator wants
    annotations   what nodes say of themselves (kube-router's keys)
    neighbours    who speaks with whom
    services      which addresses of Services this node announces
    rib           what is told to whom, what is accepted, which paths are best
    engine        what carries it out: a plan in, sessions and learned routes out
    bird          BIRD 2 as an engine

All but ``bird.control`` and ``bird.daemon`` is pure. The agent's component is not here yet.
"""
