"""Where the agent's objects come from. What goes wrong is said in our log, in our words.

gRPC's core would otherwise write lines of its own to stderr; it reads this variable when it is first imported.
"""

import os

os.environ.setdefault("GRPC_VERBOSITY", "NONE")
