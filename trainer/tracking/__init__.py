"""Upload what a run records to trackers. metrics.jsonl is the truth; a tracker that fails catches up later.

    command, upload   `rankzero track`
    background   of rank zero: starts the process of the trackers, and ends it
    worker       that process: one thread for each tracker
    uploader     one tracker: what it lacks of a run directory, logged once
    position     tracking/NAME.json: the run's id in a tracker, and what was logged
    records      lines, scores, files and recipe of a run, as trackers take them
    services/    one module for each tracker, on the classes of accelerate.tracking

Modules of services/ import the package of their tracker. Only the process of the trackers loads them.
"""
