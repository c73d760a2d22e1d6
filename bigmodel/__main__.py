import os
import sys

# A worker of `sweep run --workers` is given its cores; before the imports, which start threads.
if cores := os.environ.pop("BIGMODEL_CORES", ""):
    os.sched_setaffinity(0, map(int, cores.split(",")))

from bigmodel.cli.main import main

sys.exit(main())
