"""A smaller copy that is made on a cluster is the one that is made without."""

from __future__ import annotations

from pathlib import Path

from raymat.cluster import copy_tasks
from raymat.data.dataset.discovery import list_either
from raymat.data.preparation.copy_job import CopyJob
from raymat.data.preparation.picture_copy import CopySettings
from raymat.storage.store import Store
from tests.support.datakit import write_dataset


def test_tasks_copy_what_one_process_copies_in_its_order(cluster: None, tmp_path: Path) -> None:
    data, _ = write_dataset(str(tmp_path), pairs=70)
    settings = CopySettings(longest=48, quality=92, alpha="png")
    listing = list_either(data)
    here, there = (
        CopyJob(listing, settings, Store.open(str(tmp_path), name)) for name in ("a", "b")
    )
    places = list(here.places())
    assert copy_tasks.copier_on_cluster() is copy_tasks.copy_on_cluster
    assert len(places) > 2 * copy_tasks.PLACES
    alone = [here.copy(place) for place in places]
    assert list(copy_tasks.copy_on_cluster(there, places)) == alone
