"""The tests. What Python compiles is kept, whatever the environment says: workers and the processes that tests start read it."""

import os
import sys

sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
