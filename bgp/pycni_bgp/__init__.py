"""Routes and service addresses to a BGP fabric. Built on the core; see ARCHITECTURE.md.

    settings      what the administrator wants
    annotations   what nodes say of themselves (kube-router's keys)
    neighbours    who speaks with whom
    services      which addresses of Services this node announces
    rib           what is told to whom, what is accepted, which paths are best
    engine        what carries it out: a plan in, sessions and learned routes out
    engines       which there are: ``exabgp``, ``bird``
    view          from objects and leases to a plan
    component     the part of the agent

All but the engines' daemons, the relay, ``files``, ``configured`` and ``component`` is pure.
"""
