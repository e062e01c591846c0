"""The same training on many machines: only codes travel."""

from minibit.cluster.crews import crew_of as crew_of
from minibit.cluster.remote import Remote as Remote
from minibit.cluster.remote import Traffic as Traffic
