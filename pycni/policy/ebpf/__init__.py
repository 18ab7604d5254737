"""The eBPF fast path of network policies: programs judge connections they see whole before the data plane below does.

The pure half says what lies in the maps that programs judge by:

    layout     the maps, byte by byte, also as declarations in C
    classes    rules made flat: first match -> ports and prefixes of which the longest wins
    tiers      what the rules of a tier say, by labels and by address
    stock      identities and tiers in use, and the rows between them
    rows       rows as they should be, and what differs
    compile    rows of a node's view -> rows of the maps, incrementally
    evaluate   what a program makes of a packet and the maps
"""
