"""A plain program that runs from its place in the image, and calls the function beside it."""

import os
import signal
import sys

import humanize

from pelton import function_ref

report = function_ref("report")
report.wait_ready()
print(os.environ["GREETING"], "from", __file__, "in", os.getcwd())
print(humanize.intcomma(12345), report("a.bin", 3_000_000))
sys.stdout.flush()
signal.pause()
