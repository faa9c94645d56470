"""The static bootstrap: one JSON file for `envoy -c`."""

import json
from collections.abc import Sequence

from envoy_data_plane.envoy.config.bootstrap.v3 import Admin, Bootstrap, BootstrapStaticResources
from envoy_data_plane.envoy.config.core.v3 import Node
from envoy_data_plane.envoy.config.overload.v3 import OverloadManager, ResourceMonitor
from envoy_data_plane.envoy.extensions.resource_monitors.downstream_connections.v3 import DownstreamConnectionsConfig
from envoy_data_plane.google.protobuf import Any

from common.operations import OPERATIONS, Operation
from edge.building import address
from edge.clusters import clusters
from edge.listeners import listeners
from edge.settings import EdgeSettings


def render(settings: EdgeSettings, operations: Sequence[Operation] = OPERATIONS) -> str:
    """The bootstrap as JSON, for these public operations. It holds no secret."""
    limit = DownstreamConnectionsConfig(max_active_downstream_connections=settings.max_connections)
    bootstrap = Bootstrap(
        node=Node(id="edge", cluster="uplion"),
        admin=Admin(address=address(settings.envoy_admin_address), ignore_global_conn_limit=True),
        static_resources=BootstrapStaticResources(
            listeners=listeners(settings, operations), clusters=clusters(settings)
        ),
        overload_manager=OverloadManager(
            resource_monitors=[
                ResourceMonitor(
                    name="envoy.resource_monitors.global_downstream_max_connections", typed_config=Any.pack(limit)
                )
            ]
        ),
    )
    return json.dumps(bootstrap.to_dict(), indent=1)
