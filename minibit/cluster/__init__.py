"""The same training on many machines: only codes travel."""

from minibit.cluster.asking import Traffic as Traffic
from minibit.cluster.crews import crew_of as crew_of
from minibit.cluster.local import local_cluster as local_cluster
from minibit.cluster.remote import CUTS as CUTS
from minibit.cluster.remote import Remote as Remote
from minibit.cluster.runs import ClusterProgress as ClusterProgress
from minibit.cluster.runs import ClusterResult as ClusterResult
from minibit.cluster.runs import train_on as train_on

__all__ = ["ClusterResult", "Traffic", "local_cluster", "train_on"]
