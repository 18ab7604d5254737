"""The program behind a udp device: pod packets out of a TUN device into UDP, and back.

Life: an agent starts it (``kernel/udp_forwarder``), one per device; it takes or makes the device, puts itself into the
background and outlives the agent. It is told everything by its control socket and keeps nothing on disk. It ends when
its device or its socket is deleted, or when told.

    __main__    what is opened, before the background
    loop        one thread: device, UDP sockets, control socket, clock
    paths       bursts of packets in both directions: what is accepted, what is dropped, counters
    table       which network is behind which peer
    sockets     UDP in large pieces (UDP_SEGMENT, UDP_GRO)
    seal        encryption: sessions, their keys and windows        (pure but for random numbers)
    handshake   how two forwarders agree on a session's keys         (pure but for random numbers)
    control     requests in, answers out
"""
