"""BIRD 2 as an engine, for many routes, BFD and OSPF.

``config`` turns a plan into BIRD's configuration, ``show`` reads what birdc answers; both are pure.
"""
