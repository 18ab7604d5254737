"""exabgp as an engine: pure Python, for up to some thousand routes.

``config`` turns a plan into its configuration, ``speech`` is what is said to it and what it says (both pure); ``relay``
is the program between it and the agent, ``memory`` what that remembers; ``daemon`` is the engine.
"""
