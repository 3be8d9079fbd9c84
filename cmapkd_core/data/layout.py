"""What a prepared data set looks like on disk: file names and columns that writer and reader share.

shards.json        version, splits with their shards, classes, counts of bad rows, pictures by licence
index.parquet      one line per sample: where its bytes are and what is known of it
SPLIT-00000.tar    WebDataset shards: KEY.png|jpg|webp and KEY.json
pairs.html         a few pictures of every split with their captions, to look at
quarantine.jsonl   every row and every question that was not used, with its reason
questions.parquet  one line per question, where a source has questions
leakage.jsonl      training pictures that are also held out, where that was allowed or they were dropped
look_alikes.jsonl  pairs with the same perceptual hash that differ in colour or detail; they count as different
leakage.html       the pairs of both files side by side
"""

from __future__ import annotations

import pyarrow as pa

VERSION = 1
MANIFEST, INDEX, QUARANTINE, QUESTIONS = "shards.json", "index.parquet", "quarantine.jsonl", "questions.parquet"
PAIRS = "pairs.html"
LEAKAGE, LOOK_ALIKES, SHEET = "leakage.jsonl", "look_alikes.jsonl", "leakage.html"
ANSWER_TYPES = ("yes/no", "number", "other")  # VQAv2's

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
        (
            "sha256",
            pa.string(),
        ),  # of the picture's file as it came: of the bytes here but where `repack` made it smaller
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("phash", pa.uint64()),  # perceptual hash; null for a picture without structure
        ("origins", pa.list_(pa.string())),  # ids in other collections
    ]
)

QUESTION_SCHEMA = pa.schema(
    [
        ("split", pa.string()),
        ("key", pa.string()),  # of the picture
        ("number", pa.int64()),  # question_id, unique in the data set
        ("text", pa.string()),
        ("answers", pa.list_(pa.string())),  # one of each person asked
        ("answer_type", pa.string()),  # one of ANSWER_TYPES
        ("question_type", pa.string()),
    ]
)
