"""Turns off gRPC's handlers of forks, unless the program has chosen, before gRPC is loaded.

They run in each child that a process forks, and crash it if the parent has calls under way, as a leader always has:
then a leader could not use `multiprocessing`. This client has no use for them: it does not go on in a child.
"""

import os

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
