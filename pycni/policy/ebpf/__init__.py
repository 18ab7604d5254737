"""The eBPF fast path of network policies: programs judge connections they see whole before the data plane below does.

The pure half says what lies in the maps that programs judge by:

    layout     the maps, byte by byte, also as declarations in C
    classes    rules made flat: first match -> ports and prefixes of which the longest wins
    tiers      what the rules of a tier say, by labels and by address
    stock      identities and tiers in use, and the rows between them
    rows       rows as they should be, and what differs
    compile    rows of a node's view -> rows of the maps, incrementally
    evaluate   what a program makes of a packet and the maps

The other half is in the kernel, and brings it there (docs/ebpf.md):

    flows      connections, pods and devices as programs remember them, byte by byte (pure)
    packet.h, flows.h, judge.h   what all programs share: a packet read, an entry found, a verdict
    fast.c     the programs on pods' and exit interfaces
    driver     maps and programs: rows in, connections swept and given back, denials counted
    devices    interfaces as they are, programs on their hooks
    events     denials as they happen
    fastpath   base.FastPath
"""
