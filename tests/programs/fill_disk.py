"""Saves checkpoints until the disk is full, and tells what is left: fill_disk.py DIRECTORY, a small file system of its own.

Prints one line of JSON.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from moss_train import files
from moss_train.train import manifest as manifests
from moss_train.train.manifest import Verified
from tests.checkpoints import RUN, differences, names, partial_name, save, write


def main(directory: Path) -> dict[str, object]:
    """What happened."""
    save(directory, 1)
    partial = directory / partial_name(2)
    found: dict[str, object] = {"free_before": shutil.disk_usage(directory).free, "error": None}
    try:
        manifests.commit(partial, write(partial, 2))
    except OSError as error:
        found |= {"error": error.errno, "recognised": files.is_disk_full(error)}
    found["left"] = [name.split(".")[0] for name in names(directory)]
    used = manifests.newest_usable(directory)
    assert used is not None
    found |= {"used": used[1].step, "rejected": used[2], "different": differences(used[0], used[1].step)}
    manifests.clean(directory)
    found["left_when_clean"] = names(directory)
    # Someone makes room: the run goes on.
    (directory / "ballast").unlink()
    save(directory, 2)
    manifests.rotate(directory, 1, RUN, Verified())
    used = manifests.newest_usable(directory)
    assert used is not None
    return found | {"used_with_room": used[1].step, "left_with_room": names(directory)}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
