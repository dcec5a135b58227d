#!/bin/sh
# What a crontab line or a timer starts. The job's own identity exists while it runs and is revoked when it ends.
#   17 3 * * *  /path/to/run.sh
here=$(cd "$(dirname "$0")" && pwd)
exec handoff exec "$here/handoff-spec.json" -- "${PYTHON:-/usr/bin/python3}" "$here/job.py"
