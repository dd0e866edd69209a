"""Orbax does one thing at a time in a process.

It numbers its operations for the whole process, and each waits for signals under the number that
is current. Of two at a time one takes the other's signals for its own, writes into a folder before
it is made, and loses what it wrote (`orbax.checkpoint` 0.12.8). An engine in a command's own
process saves a state while the run writes down the one before.
"""

import threading

ORBAX_TURN = threading.Lock()
"""Held by whoever saves, loads or deletes by means of Orbax."""
