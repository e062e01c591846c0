"""The process of its own that a benchmark runs in: ``python -m minibit.bench NAME OPTIONS``.

`minibit.bench.run` starts it; OPTIONS are JSON, and so is the last line that it prints.
"""

from __future__ import annotations

import json
import sys

from minibit.bench import Options, run_here

if __name__ == "__main__":
    name, fields = sys.argv[1], json.loads(sys.argv[2])
    print(json.dumps(run_here(name, Options(**fields | {"seeds": tuple(fields["seeds"])}))))
