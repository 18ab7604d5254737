"""Following a packet: what should happen to it, what happens to it, and where the two part.

``model/space`` holds what is known of namespaces, ``kernel/spacestate`` reads it; ``walk`` leads a packet through a
world of them, once as the agents want it and once as the kernels have it; ``observe`` sends a probe and watches it
pass;
``verdict`` compares the three.
"""
