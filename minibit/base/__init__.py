"""What all rooms share: checks of arguments, files that are whole, strict JSON, bfloat16.

    checks      an argument is returned as what the code works with, or refused by name and value
    damage      a file is refused: which file, which tensor, which byte
    strict_json JSON of strangers: no key twice, no NaN, a bound on everything
    whole_file  files and folders that appear whole or not at all
    bfloat16    to float32 and back
    top         the k largest, ties to the lowest index
    text        what strangers wrote, as it may be shown
"""

from __future__ import annotations

from minibit.base.bfloat16 import from_bfloat16 as from_bfloat16
from minibit.base.bfloat16 import to_bfloat16 as to_bfloat16
from minibit.base.bfloat16 import widen as widen
from minibit.base.checks import bounds as bounds
from minibit.base.checks import finite as finite
from minibit.base.checks import first_not_finite as first_not_finite
from minibit.base.checks import float32 as float32
from minibit.base.checks import floats as floats
from minibit.base.checks import integer as integer
from minibit.base.checks import integers as integers
from minibit.base.checks import last_axis as last_axis
from minibit.base.checks import not_finite as not_finite
from minibit.base.checks import number as number
from minibit.base.checks import one_of as one_of
from minibit.base.checks import plain as plain
from minibit.base.checks import refuse_entries as refuse_entries
from minibit.base.checks import threads as threads
from minibit.base.checks import unmasked as unmasked
from minibit.base.damage import CheckpointError as CheckpointError
from minibit.base.damage import check_file as check_file
from minibit.base.damage import read_json as read_json
from minibit.base.damage import read_whole as read_whole
from minibit.base.strict_json import JSONError as JSONError
from minibit.base.strict_json import parse_object as parse_object
from minibit.base.text import printable as printable
from minibit.base.text import shown as shown
from minibit.base.top import largest as largest
from minibit.base.whole_file import open_whole as open_whole
from minibit.base.whole_file import whole_files as whole_files
from minibit.base.whole_file import whole_path as whole_path
