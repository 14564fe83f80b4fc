"""One command on several processes: who does which part, how results meet, and what happens when one ends."""

from vizrobust.processes.group import ALONE, FOREVER, Processes
from vizrobust.processes.launch import Launch, launched

__all__ = ["ALONE", "FOREVER", "Launch", "Processes", "launched"]
