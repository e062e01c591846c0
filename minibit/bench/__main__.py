"""The process of its own that `in_own_process` starts: its last line is the result, JSON."""

import json
import sys

from minibit.bench.processes import call

if __name__ == "__main__":
    print(json.dumps(call(sys.argv[1], json.loads(sys.argv[2]))))
