"""Many machines on Ray Serve: replicas that are servers, relays in front of them; needs `kvfold[ray]`.

`serve run kvfold.runtime.cluster:build bundle=... replicas=2`
"""

from kvfold.runtime.cluster.build_cluster import build

__all__ = ["build"]
