"""One loop for every method: steps, schedules, checkpoints, logs, devices."""
