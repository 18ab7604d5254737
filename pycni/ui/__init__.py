"""``pycnictl ui``: the topology in a browser, with its traffic, its drops and traces drawn along their paths.

``graph`` makes a graph of what a trace goes by, ``layout`` gives it places, ``course`` leads a trace over it; all pure.
``source`` reads labs and nodes, ``server`` answers browsers; what they run is in ``static``.
"""
