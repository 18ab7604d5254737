"""``pycnictl check``: a connectivity test that brings its own pods, in a lab or in a cluster.

``plan`` and ``judge`` are pure: what is tried and what the outcome means. ``peer`` is the program in the pods, ``lab``
and ``kube`` are the two grounds it runs on, ``course`` goes through it all, ``cause`` asks the trace why, ``report``
shows it.
"""
