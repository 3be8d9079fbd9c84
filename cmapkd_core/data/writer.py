"""Rows to WebDataset shards with an index, every row either in a shard or in the quarantine."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cmapkd_core import storage
from cmapkd_core.config import DataConfig
from cmapkd_core.data.inspection import Inspected, Inspection, Stored, inspected, side_of
from cmapkd_core.data.layout import INDEX, MANIFEST, QUARANTINE, QUESTIONS, SCHEMA, VERSION
from cmapkd_core.data.part_notes import Notes
from cmapkd_core.data.prepare_resume import SavedShards, SourceChangedError
from cmapkd_core.data.questions import Checked, QuestionTable
from cmapkd_core.data.rows import SPLITS, BadRow, Item, Row
from cmapkd_core.data.tar import RestoredShard, Shard
from cmapkd_core.data.texts import checked, text, texts
from cmapkd_core.data.verdict import Reasons, judge
from cmapkd_core.errors import InputError

DUPLICATE = "duplicate key: an earlier row has it"


def write_shards(
    rows: Iterable[Item],
    out: Path,
    config: DataConfig,
    progress: Callable[[int], None],
    *,
    workers: int = 0,
    saved: SavedShards | None = None,
    notes: Notes | None = None,
) -> dict[str, int]:
    """Check, split and store every row.

    Args:
        rows: from a source; read once, in order, never held together.
        out: an empty local folder; gets the files of `layout`.
        config: shares of the splits, size of shards and what counts as too much.
        progress: called with the number of rows seen so far.
        workers: threads that decode and hash; the result does not depend on them.
        saved: finished shards of an earlier attempt, and where those of this one are kept.
        notes: the rows are a partition of a source: where what its parts are joined by is noted. Whether a part alone
            would make a data set is not asked.

    Returns:
        Counts: seen, used, quarantined, left_out (of splits that `config.splits` does not name), train, val, test,
        classes, and captions; questions and bad_questions where a row had any.

    Raises:
        TooManyBadError: rows or questions above the bound, or nothing left to train on; `quarantine.jsonl` is
            complete then.
        InputError: shares that leave nothing to train on, or a source without rows.
        SourceChangedError: `saved` is from other rows; nothing that was written counts.
    """
    if min(config.val_share, config.test_share) < 0 or config.val_share + config.test_share >= 1:
        raise InputError(
            f"data.val_share={config.val_share} and data.test_share={config.test_share} leave nothing to train on: "
            "their sum must be below 1"
        )
    out.mkdir(parents=True, exist_ok=True)
    with open(out / QUARANTINE, "w", encoding="utf-8") as quarantine:
        saved = saved or SavedShards()
        writer = Writer(out, config, quarantine, saved, notes)
        for row in inspected(rows, config, workers, saved):
            writer.add(row)
            progress(writer.rows_read)
        writer.close()
    return writer.finish(judged=notes is None)


class Writer:
    """The open shard of each split, the index, and what has been seen."""

    def __init__(
        self, out: Path, config: DataConfig, quarantine: IO[str], saved: SavedShards, notes: Notes | None = None
    ) -> None:
        self.out, self.config, self.quarantine, self.saved = out, config, quarantine, saved
        self._notes = notes or Notes()
        self.rows_read = self.bad = self.left_out = 0
        self.reasons, self.question_reasons = Reasons(), Reasons()
        self._keys: set[str] = set()
        self._index = pq.ParquetWriter(out / INDEX, SCHEMA)
        self._open: dict[str, Shard | RestoredShard] = {}
        self._shards: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
        self._classes: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}
        self._captions = 0
        self._questions = QuestionTable(out / QUESTIONS)

    def add(self, outcome: Inspection) -> None:
        """Store the row, or list it as bad."""
        self.rows_read += 1
        key = outcome.key if isinstance(outcome, BadRow) else outcome.row.key
        try:
            if isinstance(outcome, BadRow):
                raise InputError(outcome.reason)
            questions = self._questions.check(outcome.row.questions)
            self._notes.asked(questions.asked)
            captions = _captions(outcome.row, questions)
            group, split = self._side(outcome)
        except InputError as error:
            self.refuse({"row": self.rows_read, "key": key, "reason": str(error)})
            return
        if self.config.splits and split not in self.config.splits:
            self._notes.unused(self.rows_read, key)
            self.left_out += 1
            return
        self._store(outcome, captions, group, split)
        self._questions.add(split, key, questions)
        for number, reason in questions.bad:
            self.refuse({"row": self.rows_read, "key": key, "question": number, "reason": reason})

    def refuse(self, entry: dict[str, Any]) -> None:
        """List a bad row, or a bad `question` of one that is stored, as quarantine.jsonl has it."""
        print(json.dumps(entry), file=self.quarantine)
        key, reason = entry["key"], entry["reason"]
        if "question" in entry:
            self.question_reasons.add(f"{key}, question {entry['question']}: {reason}", reason)
        else:
            self.bad += 1
            self.reasons.add(f"{key}: {reason}", reason)

    def _side(self, outcome: Inspected | Stored) -> tuple[str, str]:
        """Group and split of a row."""
        row = outcome.row
        if row.key in self._keys:
            raise InputError(DUPLICATE)
        digest = outcome.sha256 if isinstance(outcome, Inspected) else outcome.sample["sha256"]
        group, split = side_of(row, digest, self.config)
        if split not in SPLITS:
            self._notes.unused(self.rows_read, row.key)
            raise InputError(f"split '{split}' is none of {', '.join(SPLITS)}")
        return group, split

    def _store(self, outcome: Inspected | Stored, captions: list[str], group: str, split: str) -> None:
        row, shard = outcome.row, self._shard(split)
        self._keys.add(row.key)
        self._notes.stored(split, self.rows_read)
        self._classes[split][row.class_name] += 1
        self._captions += len(captions)
        if isinstance(outcome, Stored) != isinstance(shard, RestoredShard):
            raise SourceChangedError(f"{row.key} would be in {shard.path.name} and was not, or the reverse")
        if isinstance(outcome, Stored) and isinstance(shard, RestoredShard):
            now = {"captions": captions, "split": split, "class_name": row.class_name, "group": group}
            now |= {"origins": list(row.origins)}
            if changed := [name for name, value in now.items() if (outcome.sample[name] or "") != (value or "")]:
                raise SourceChangedError(f"{row.key} had another {' and '.join(changed)}")
            shard.restore(outcome.sample)
        elif isinstance(outcome, Inspected) and isinstance(shard, Shard):
            metadata = {
                "key": row.key,
                "captions": captions,
                "class_name": row.class_name,
                "group": group,
                "sha256": outcome.sha256,
                "width": outcome.width,
                "height": outcome.height,
            }
            known = {"split": split, "ext": outcome.extension, "phash": outcome.phash, "origins": row.origins}
            origins = {"origins": row.origins} if row.origins else {}
            shard.add(self.rows_read, {**metadata, **known}, row.image, {**metadata, **origins, "licence": row.licence})

    def _shard(self, split: str) -> Shard | RestoredShard:
        shard = self._open.get(split)
        if shard and len(shard.samples) == self.config.samples_per_shard:
            self._seal(split)
        if split not in self._open:
            path = self.out / f"{split}-{len(self._shards[split]):05d}.tar"
            self._open[split] = RestoredShard(path, self.saved) if self.saved.count(path.name) else Shard(path)
        return self._open[split]

    def _seal(self, split: str) -> None:
        shard = self._open.pop(split)
        samples = shard.seal()
        self._put(split, pa.Table.from_pylist(samples, schema=SCHEMA), shard.path, shard.digest)
        if isinstance(shard, Shard):
            self.saved.keep(shard.path, shard.digest, samples, shard.numbers)

    def _put(self, split: str, lines: pa.Table, path: Path, digest: str) -> None:
        self._index.write_table(lines)
        self._notes.sealed(path.name)
        self._shards[split].append(
            {
                "file": path.name,
                "bytes": path.stat().st_size,
                "sha256": digest,
                "count": lines.num_rows,
            }
        )

    def take(self, split: str, lines: pa.Table, path: Path, digest: str) -> None:
        """The next shard of a split, which has been made from parts; `lines` are its part of the index."""
        self._put(split, lines, path, digest)
        for entry in pc.value_counts(lines["class_name"]).to_pylist():
            self._classes[split][entry["values"]] += entry["counts"]
        self._captions += pc.sum(pc.list_value_length(lines["captions"])).as_py() or 0

    def take_questions(self, questions: pa.Table, bad: int) -> None:
        """Those of a part, whose numbers no other part has."""
        self._questions.take(questions, bad)

    def close(self) -> None:
        """Complete the shards, the index and the questions."""
        for split in SPLITS:
            if split in self._open:
                self._seal(split)
        self._index.close()
        self._questions.close()
        self._notes.close()
        self.saved.wait()

    def finish(self, judged: bool = True) -> dict[str, int]:
        """Write shards.json of a closed data set; its counts.

        Raises:
            TooManyBadError, InputError: as `write_shards`, where it is judged.
        """
        counts = self.counts()
        if judged:
            judge(counts, self.reasons, self.question_reasons, self.config)
        storage.write_json(str(self.out / MANIFEST), self.manifest())
        return counts

    def manifest(self) -> dict[str, Any]:
        """What shards.json holds; it is written last, when everything has been checked."""
        return {
            "version": VERSION,
            "max_pixels": self.config.max_pixels,
            **({"repack": self.config.repack} if self.config.repack else {}),
            "index": {"file": INDEX, "sha256": storage.sha256_file(self.out / INDEX)},
            **self._questions.manifest(),
            "splits": {split: self._split_entry(split) for split in SPLITS},
            "classes": self._class_names(),
            "seen": self.rows_read,
            "quarantined": self.bad,
        }

    def _class_names(self) -> list[str]:
        return sorted({name for counter in self._classes.values() for name in counter if name})

    def _split_entry(self, split: str) -> dict[str, Any]:
        shards = self._shards[split]
        classes = {name: count for name, count in sorted(self._classes[split].items()) if name}
        count = sum(shard["count"] for shard in shards)
        return {"count": count, "shards": shards, "classes": classes, **self._questions.entry(split)}

    def counts(self) -> dict[str, int]:
        """Counts of what the files hold, read back from them.

        Raises:
            RuntimeError: used, quarantined and left out are not what was seen; a defect of this module.
        """
        used = pq.read_metadata(self.out / INDEX).num_rows
        with open(self.out / QUARANTINE, encoding="utf-8") as file:
            quarantined = sum("question" not in json.loads(line) for line in file)
        if used + quarantined + self.left_out != self.rows_read:
            raise RuntimeError(f"{used} samples + {quarantined} quarantined are not the {self.rows_read} rows seen")
        splits = {split: sum(shard["count"] for shard in self._shards[split]) for split in SPLITS}
        totals = {"seen": self.rows_read, "used": used, "quarantined": quarantined, "left_out": self.left_out}
        contents = {"classes": len(self._class_names()), "captions": self._captions, **self._questions.counts()}
        return {**totals, **splits, **contents}


def _captions(row: Row, questions: Checked) -> list[str]:
    """The captions with single spaces, each once; a row that has questions or a class may have none.

    Raises:
        InputError: the row has no key, neither a caption nor a class nor a good question, or a text that is none
            (`data.texts`): every source comes through here, whatever it has read itself.
    """
    if not row.key:
        raise InputError("key is missing or empty")
    captions = [" ".join(caption.split()) for caption in texts(list(row.captions))] if row.captions else []
    if not (captions or row.class_name) and questions.bad and not questions.good:
        raise InputError(f"no caption, and no good question: question {'{}: {}'.format(*questions.bad[0])}")
    if not (captions or row.class_name or questions.good):
        raise InputError("caption is missing or empty")
    fields = [("key", row.key), ("group", row.group), *(("origin", origin) for origin in row.origins)]
    for name, value in [*fields, ("class", text(row.class_name, "class") if row.class_name else "")]:
        if checked(value, name) != value:
            raise InputError(f"{name} has the byte order mark U+FEFF")
    return list(dict.fromkeys(captions))
