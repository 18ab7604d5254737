"""The eBPF fast path of network policies.

layout     pure: the maps programs judge by, byte by byte, also as declarations in C
classes    pure: rules of one tier made flat: first match -> ports and prefixes of which the longest wins
compile    pure: rows of a node's view -> rows of the maps, incrementally
evaluate   pure: what a program makes of a packet and the maps
"""
