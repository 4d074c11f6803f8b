"""Feast's definitions of waxwing's features: a loop over the catalogue, nothing by hand.

One entity type is one `Entity`, one (event type, entity) one `FeatureView`, one event type one
`FeatureService`. The flow itself writes the online store; nothing here is ever materialised. The
variables `WAXWING_EVENT_PATHS` and `WAXWING_FEATURE_PATHS` name event types and features of your
own, `WAXWING_FEATURES` those that are computed, as the settings of the same name do for the flow.
"""

from __future__ import annotations

import logging
from pathlib import Path

from feast import (
    Entity,
    FeatureService,
    FeatureView,
    Field,
    FileSource,
    Project,
    PushSource,
    ValueType,
)
from feast.data_format import ParquetFormat
from feast.types import Float64

from dataflows.settings import load
from dataflows.store.layout import PROJECT, layouts, service_name
from features.catalog import catalog

HISTORY = "../.waxwing/history"
"""Folder of the training history: Parquet parts, one folder an event type."""

if not (Path(__file__).parent / HISTORY).exists():
    # Nothing to train on has been written yet; Feast would say so once a view.
    logging.getLogger("feast.infra.offline_stores.file_source").setLevel(logging.ERROR)

load()  # Declares what the variables name; nothing else of the settings matters here.
_layouts = layouts(catalog())
_events = tuple(dict.fromkeys(event for event, _ in _layouts))

entities = {
    name: Entity(
        name=name,
        join_keys=[name],
        value_type=ValueType.STRING,
        description=f"One {name.replace('_', ' ')}; parts of a joint name are separated by `|`",
    )
    for name in dict.fromkeys(layout.entity for layout in _layouts.values())
}

sources = {
    event: FileSource(
        name=f"{event}_history",
        path=f"{HISTORY}/{event}",
        file_format=ParquetFormat(),
        timestamp_field="event_timestamp",
    )
    for event in _events
}

views = {
    key: FeatureView(
        name=layout.name,
        entities=[entities[layout.entity]],
        # Time is event time and a window says how far back it reaches: no row expires by itself.
        ttl=None,
        schema=[
            Field(
                name=feature,
                dtype=Float64,
                description=catalog().feature(key[0], feature).why,
                tags={"unit": catalog().feature(key[0], feature).unit},
            )
            for feature in layout.features
        ],
        source=PushSource(name=f"{layout.name}_push", batch_source=sources[key[0]]),
        tags={"event_type": key[0], "catalog_version": catalog().version},
    )
    for key, layout in _layouts.items()
}

services = {
    event: FeatureService(
        name=service_name(event),
        features=[view for (of, _), view in views.items() if of == event],
        description=f"All features of the entities of a {event.replace('_', ' ')} event",
    )
    for event in _events
}

project = Project(name=PROJECT, description="Anomaly features per entity, written by the flow")

# Feast registers what it finds under a name of the module and does not look into a dict.
globals().update({f"{name}_entity": entity for name, entity in entities.items()})
globals().update({view.name: view for view in views.values()})
globals().update({service.name: service for service in services.values()})
