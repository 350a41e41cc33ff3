"""Helpers of the benchmarks: fresh processes, medians, spread and peak memory."""

import ctypes
import gc
import json
import os
import random
import statistics
import subprocess
import sys
import time
import types

# The numbers of a peer that is not there: its line in a `Table` is no failure.
NOT_INSTALLED = {"failed": "not installed"}

