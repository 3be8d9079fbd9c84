"""What a prepared data set looks like on disk: file names and columns that writer and reader share.

shards.json        version, splits with their shards, classes, counts of bad rows
index.parquet      one line per sample: where its bytes are and what is known of it
SPLIT-00000.tar    WebDataset shards: KEY.png|jpg|webp and KEY.json
quarantine.jsonl   every row that was not used, with its reason
"""

from __future__ import annotations

import pyarrow as pa

VERSION = 1
MANIFEST, INDEX, QUARANTINE = "shards.json", "index.parquet", "quarantine.jsonl"

SCHEMA = pa.schema(
    [
        ("split", pa.string()),
        ("shard", pa.string()),  # file name
        ("key", pa.string()),
        ("ext", pa.string()),
        ("image_offset", pa.int64()),
        ("image_size", pa.int64()),
        ("image_crc32", pa.uint32()),
        ("json_offset", pa.int64()),
        ("json_size", pa.int64()),
        ("json_crc32", pa.uint32()),
        ("captions", pa.list_(pa.string())),
        ("class_name", pa.string()),
        ("group", pa.string()),
        ("sha256", pa.string()),  # of the image bytes
        ("width", pa.int32()),
        ("height", pa.int32()),
    ]
)
