"""Rows of Parquet and Arrow files as records.

A column's type says that a key may be there in any row, so a key without a value and a missing key look the same; both are read as missing,
and so is an object all of whose keys are.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moss_train.data.strict_json import JsonProblem
from moss_train.errors import DataError

# Rows turned into Python objects at once.
_BATCH_ROWS = 1024
# Bounds on what the footer of a Parquet file may claim (bytes of its texts, number of its lists' items), so that a damaged one cannot ask
# for all memory; a real one with thousands of columns and row groups stays below.
_FOOTER_BYTES = 64 * 1024 * 1024
_FOOTER_ITEMS = 4_000_000
_DAMAGED = "the file is damaged or was cut; copy or write it again."


def read_parquet(path: Path, first_group: int, end_group: int | None) -> Iterator[Any]:
    """The rows of some row groups, in order, one batch in memory at a time.

    Yields:
        Each row as a dictionary, or a JsonProblem in the place of a row that cannot be read. After a `bad_archive`, which stands for the
        rest of the file, there are no more.
    """
    import pyarrow as pa

    try:
        with _open_parquet(path) as file:
            groups = range(first_group, file.num_row_groups if end_group is None else end_group)
            for group in groups:
                yield from _rows(file.iter_batches(_BATCH_ROWS, row_groups=[group], use_threads=False))
    except (pa.ArrowException, OSError, MemoryError, ValueError) as error:
        yield JsonProblem("bad_archive", _describe("Parquet", error))


def split_row_groups(path: Path, piece_bytes: int) -> list[tuple[int, int, int]]:
    """Ranges of row groups of about `piece_bytes` each: first group, end group, number of the first row from 1.

    Returns:
        Nothing where the file is damaged: reading it says how.
    """
    import pyarrow as pa

    pieces: list[tuple[int, int, int]] = []
    try:
        with _open_parquet(path) as file:
            start, size, first_row, row = 0, 0, 1, 1
            for group in range(file.num_row_groups):
                described = file.metadata.row_group(group)
                size += described.total_byte_size
                row += described.num_rows
                if size >= piece_bytes or group == file.num_row_groups - 1:
                    pieces.append((start, group + 1, first_row))
                    start, size, first_row = group + 1, 0, row
    except (pa.ArrowException, OSError, MemoryError, ValueError):
        return []
    return pieces


def read_arrow(path: Path) -> Iterator[Any]:
    """The rows of an Arrow file as Hugging Face's datasets writes it (the stream form), in order; yields as `read_parquet`."""
    import pyarrow as pa

    try:
        with pa.OSFile(str(path)) as file, pa.ipc.open_stream(file) as stream:
            yield from _rows(stream)
    except (pa.ArrowException, OSError, MemoryError, ValueError) as error:
        yield JsonProblem("bad_archive", _describe("Arrow", error))


def rows_of_dataset(directory: Path) -> list[Path] | None:
    """The files that hold the rows of a dataset saved with `save_to_disk`; None: the directory is not one."""
    state = directory / "state.json"
    if not state.is_file():
        return None
    try:
        described = json.loads(state.read_text(encoding="utf-8"))
        names = [entry["filename"] for entry in described["_data_files"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        # Some other program's state.json.
        return None
    if not all(isinstance(name, str) and name == Path(name).name and name.endswith(".arrow") for name in names):
        raise DataError(f"{state}: names a data file that is not an .arrow file beside it; save the dataset again.")
    return [directory / name for name in names]


def refuse_splits(dataset_dict: Path) -> None:
    """Ends on a saved DatasetDict: reading all of its splits together would train on what is meant for testing."""
    splits = sorted(child.name for child in dataset_dict.parent.iterdir() if (child / "state.json").is_file())
    example = dataset_dict.parent / (splits[0] if splits else "train")
    raise DataError(
        f"{dataset_dict.parent}: a saved DatasetDict with the splits {', '.join(splits) or 'none'}; name one, such as {example}."
    )


def _open_parquet(path: Path) -> Any:
    import pyarrow.parquet as pq

    return pq.ParquetFile(
        path,
        thrift_string_size_limit=_FOOTER_BYTES,
        thrift_container_size_limit=_FOOTER_ITEMS,
        page_checksum_verification=True,
    )


def _rows(batches: Any) -> Iterator[Any]:
    """Rows of record batches; each is checked whole first: pyarrow trusts the offsets in a file, and wrong ones end the process."""
    import pyarrow as pa

    for batch in batches:
        names = batch.schema.names
        if len(set(names)) != len(names):
            repeated = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"two columns are named {repeated!r}")
        batch.validate()
        try:
            batch.validate(full=True)
            rows = batch.to_pylist(maps_as_pydicts="strict")
        except (pa.ArrowException, ValueError, KeyError):
            yield from _rows_one_by_one(batch)
        else:
            yield from map(_without_missing, rows)


def _rows_one_by_one(batch: Any) -> Iterator[Any]:
    """The rows of a batch in which something is wrong: only the bad ones are lost."""
    import pyarrow as pa

    for index in range(batch.num_rows):
        row = batch.slice(index, 1)
        try:
            row.validate(full=True)
            yield _without_missing(row.to_pylist(maps_as_pydicts="strict")[0])
        except (pa.ArrowException, ValueError, KeyError) as error:
            code = "not_utf8" if "utf" in str(error).lower() else "bad_row"
            yield JsonProblem(code, f"the row cannot be read: {_first_line(error)}; write it again.")


def _without_missing(value: Any) -> Any:
    if isinstance(value, dict):
        kept = ((key, item, _without_missing(item)) for key, item in value.items())
        return {key: cleaned for key, item, cleaned in kept if cleaned is not None and not (cleaned == {} and item != {})}
    if isinstance(value, list):
        return [_without_missing(item) for item in value]
    return value


def _describe(form: str, error: BaseException) -> str:
    return f"not {form}, or damaged: {_first_line(error)}: {_DAMAGED}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
