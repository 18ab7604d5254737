"""Early drop: what policies certainly deny ends where the uplink receives it, before the stack.

layout     pure: the program's own maps, byte by byte
driver     the program on interfaces, and what it goes by
xdp        all of it as a fast path for the engine
"""
