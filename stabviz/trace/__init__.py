"""The record of training runs, tiny or large, and what may be said of them.

`Trace` holds what R runs measured at S steps. Verdicts, plots, panels, claims and tests read Traces
and nothing else. Axis letters are those of `stabviz.ops`: R runs, S steps.
"""

from stabviz.trace.diagnosis import Diagnosis, diagnose
from stabviz.trace.log import read_metrics
from stabviz.trace.readers import read_run
from stabviz.trace.signals import SIGNALS, Signal, signal_of
from stabviz.trace.spikes import Spike, find_spikes
from stabviz.trace.storage import load, save
from stabviz.trace.trace import Trace, concatenate
from stabviz.trace.verdicts import Verdict, lr_sensitivity, verdict, verdicts

__all__ = [
    "SIGNALS",
    "Diagnosis",
    "Signal",
    "Spike",
    "Trace",
    "Verdict",
    "concatenate",
    "diagnose",
    "find_spikes",
    "load",
    "lr_sensitivity",
    "read_metrics",
    "read_run",
    "save",
    "signal_of",
    "verdict",
    "verdicts",
]
