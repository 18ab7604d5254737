"""Traces at work: looking at nodes, sending probes, watching them pass; what is made of it is in ``pycni.trace``.

``course`` makes one trace over ``eyes.Eyes``; ``local`` looks at namespaces of this machine.
"""
