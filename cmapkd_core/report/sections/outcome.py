"""What came out of a run or a suite, in a sentence: which models differ by the number that decides, and by how much."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from cmapkd_core.report.read.artifacts import Missing
from cmapkd_core.report.read.results import MEAN_RECALL, SIDES, Results
from cmapkd_core.report.read.run_inputs import ROLES, RunInputs
from cmapkd_core.report.read.suite_inputs import FULL_METHOD, MEAN, SuiteInputs, compared_with
from cmapkd_core.report.row_differences import Adjusted, adjusted_differences, wider_of
from cmapkd_core.report.significance import LEVEL, Interval, counted, paired, signed
from cmapkd_core.report.tables.gains import CUTS, recall_gain, retrievals

LEAST = 20  # pictures, or groups of them; a t-interval of 0 and 100 over fewer is none
BETTER, WORSE, UNDECIDED, SAME, FEW = "better", "worse", "not told apart", "the same", "too few pictures"
OTHERS = {
    "reference": "the same student trained without a teacher",
    "before": "the student before training",
}
WHAT_DECIDES = (
    "Mean recall decides: the mean of R@1, R@5 and R@10 in both directions. It is the usual summary of retrieval and "
    "takes in every cut-off, so none can be picked after a look at the results."
)
PAIRED = (
    " Its interval is paired, since both models answered the same queries; a picture and its captions count as one."
)
ONE_SEED = (
    "This is one seed: the interval holds what other test pictures would change, not what another seed would. A suite "
    "of several seeds measures that."
)


@dataclass(frozen=True)
class Outcome:
    """A verdict. tone: better, worse or unclear. comparisons: with what -> word, mean, low, high and n of the interval.

    notes: which number decided and why, and what the sentence does not hold.
    """

    sentence: str
    tone: str
    notes: tuple[str, ...] = ()
    comparisons: Mapping[str, Mapping[str, Any]] | None = None

    def plain(self) -> dict[str, Any]:
        """For programs."""
        return {**asdict(self), "decides": f"retrieval/{MEAN_RECALL}"}


def judged(gain: Interval | None, least: int = LEAST) -> str:
    """What an interval of the student minus another model says of the two.

    Args:
        least: values that the interval is over at least, or it says nothing.
    """
    if gain is None or gain.half is None or gain.n < least:
        return FEW
    if gain.excludes_zero:
        return BETTER if gain.mean > 0 else WORSE
    return UNDECIDED if gain.half or gain.mean else SAME


def run_outcome(inputs: RunInputs, results: Results) -> Outcome:
    """The distilled student against the student without a teacher, and against itself before training."""
    student = results.row("student")
    if not student.values:
        return Outcome("The student was not evaluated, so nothing is known of it.", "unclear")
    gains, absent = {}, []
    for role, other in OTHERS.items():
        try:
            gains[role] = recall_gain(*retrievals(inputs, role))
        except Missing:
            absent.append(other)
    who = (
        "The distilled student" if student.label == ROLES["student"].label else f"The student of row {inputs.ablation}"
    )
    words = {role: judged(gain) for role, gain in gains.items()}
    notes = [f"Not compared with {' nor with '.join(absent)}: there is no evaluation of it."] if absent else []
    notes += [WHAT_DECIDES + PAIRED, *_single_cuts(inputs, words), ONE_SEED] if gains else []
    comparisons = {role: _plain(gain, words[role]) for role, gain in gains.items()}
    return Outcome(_run_sentence(who, gains, words), _tone(words), tuple(notes), comparisons)


def _run_sentence(who: str, gains: Mapping[str, Interval | None], words: Mapping[str, str]) -> str:
    if not gains:
        return f"{who} was compared with nothing: neither what the teacher gave nor what training gave is known."
    if set(words.values()) == {FEW}:
        return _too_few(who, gains)
    order = sorted(gains, key=lambda role: role != "before" and words.get("before") == WORSE)
    parts = [f"{_CLAUSES[words[role]].format(OTHERS[role])}{_measured(gains[role])}" for role in order]
    return f"{who} {_joined(parts, [words[role] for role in order])}."


def _too_few(who: str, gains: Mapping[str, Interval | None]) -> str:
    known = {role: gain for role, gain in gains.items() if gain}
    n = max((gain.n for gain in known.values()), default=0)
    listed = ", ".join(f"{signed(gain.mean)} against {OTHERS[role]}" for role, gain in known.items())
    return (
        f"{n} test pictures are too few to judge {who[0].lower()}{who[1:]}: {LEAST} are needed, "
        f"those that share a caption counted as one (points of mean recall: {listed})."
    )


_CLAUSES = {
    BETTER: "is better than {}",
    WORSE: "is worse than {}",
    UNDECIDED: "is not told apart from {}",
    SAME: "answers every test query just as {}",
    FEW: "cannot be compared with {} on so few test pictures",
}


def _joined(parts: list[str], words: list[str]) -> str:
    return (", but " if len(set(words)) > 1 else ", and ").join(parts)


def _measured(gain: Interval | None) -> str:
    """` (mean recall +1.4 points, 95 % interval -0.6 to +3.4)`."""
    if gain is None:
        return ""
    if gain.half is None or gain.n < LEAST:
        return f" (mean recall {signed(gain.mean)} points over {gain.n}; {LEAST} are needed)"
    return f" (mean recall {points(gain)})" if gain.half else ""


def points(gain: Interval) -> str:
    """`+1.4 points, 95 % interval -0.6 to +3.4`."""
    return f"{signed(gain.mean)} points, {100 * LEVEL:.0f} % interval {signed(gain.low)} to {signed(gain.high)}"


def _tone(words: Mapping[str, str]) -> str:
    """Worse where either comparison is; better only by the teacher."""
    if WORSE in words.values():
        return WORSE
    return BETTER if words.get("reference") == BETTER else "unclear"


def _single_cuts(inputs: RunInputs, words: Mapping[str, str]) -> list[str]:
    """Where mean recall tells nothing of the teacher: the single cut-offs that do, which did not decide."""
    if words.get("reference") != UNDECIDED:
        return []
    student, other = retrievals(inputs, "reference")
    gains = {
        f"{title.lower()} {head}": recall_gain(student, other, ks, (side,))
        for side, title in SIDES.items()
        for head, ks in CUTS.items()
        if len(ks) == 1
    }
    listed = [f"{name} {points(gain)}" for name, gain in gains.items() if gain and gain.excludes_zero]
    return (
        [f"Of its six parts these differ by themselves from {OTHERS['reference']}: {'; '.join(listed)}."]
        if listed
        else []
    )


def _plain(gain: Interval | None, word: str) -> dict[str, Any]:
    if gain is None:
        return {"word": word}
    return {"word": word, "mean": gain.mean, "low": gain.low, "high": gain.high, "n": gain.n}


def suite_outcome(inputs: SuiteInputs, results: Results) -> Outcome:
    """The full method against every other row by mean recall, the p-values adjusted by Holm's rule."""
    measured = {row.name for row in results.trained if row.seeds}
    if not measured.intersection(compared_with(inputs.rows)):
        return Outcome(f"The {FULL_METHOD} was not measured, so no row can be compared with it.", "unclear")
    changes = adjusted_differences(results, MEAN)
    if not changes:
        return Outcome(f"No measured row can be compared with the {FULL_METHOD}.", "unclear")
    comparisons = {
        name: _plain(one.interval, _of_row(one)) | {"p": one.p, "p_holm": one.adjusted} for name, one in changes.items()
    }
    notes = (*_since_training(results), WHAT_DECIDES, *_over_concepts(results, changes), HOLM.format(len(changes)))
    if all(one.interval.n == 1 for one in changes.values()):
        more = len(inputs.seeds) > 1
        way_out = "other seeds of the suite are not measured yet" if more else "run the suite with more seeds"
        sentence = f"With one seed no row is told apart from the {FULL_METHOD}: {way_out}."
        return Outcome(sentence, "unclear", notes[:-1], comparisons)
    by_outcome: dict[str, list[str]] = {BETTER: [], WORSE: [], UNDECIDED: []}
    for name, one in sorted(changes.items(), key=lambda item: item[1].interval.mean):
        by_outcome[_of_row(one)].append(f"{results.row(name).label} {signed(one.interval.mean)}")
    sentence = _suite_sentence(counted(one.interval.n for one in changes.values()), by_outcome)
    tone = WORSE if by_outcome[BETTER] else BETTER if by_outcome[WORSE] else "unclear"
    return Outcome(sentence, tone, notes, comparisons)


def _suite_sentence(seeds: str, by_outcome: Mapping[str, list[str]]) -> str:
    """by_outcome: rows with their differences, by what they are beside the full method."""
    clauses = {WORSE: "better than {}", BETTER: "worse than {}", UNDECIDED: "not told apart from {}"}
    parts = [words.format(_rows(by_outcome[word])) for word, words in clauses.items() if by_outcome[word]]
    count = sum(map(len, by_outcome.values()))
    listed = ", ".join([*parts[:-2], " and ".join(parts[-2:])])
    sentence = f"Over {seeds} seeds the {FULL_METHOD} is {listed}, of {count} other row{'s' if count > 1 else ''}"
    if any(0 < len(names) <= NAMED for names in by_outcome.values()):
        sentence += f"; in brackets their mean recall minus the {FULL_METHOD}'s, in points"
    return f"{sentence}."


NAMED = 8  # rows that the sentence names of those that fare alike

HOLM = (
    "A row of three seeds or more is told apart where the p-value of the paired t-test over them, adjusted by Holm's "
    "rule for {} comparisons, is below 0.05: of suites in which nothing differs, one in twenty at most then says that "
    "something does. A dagger further below is the same rule over all comparisons of its table; what is bold stands "
    "for itself."
)


def _over_concepts(results: Results, changes: Mapping[str, Adjusted]) -> list[str]:
    """The rows that are told apart on these test concepts and that others may not tell."""
    ends = {name: wider for name, one in changes.items() if one.significant and (wider := wider_of(one.interval))}
    open_ones = [results.row(name).label for name, wider in ends.items() if wider.low <= 0 <= wider.high]
    if not open_ones:
        return []
    return [
        "Told apart with these test pictures, and perhaps not with others: the interval over seeds and test concepts "
        f"holds zero for {', '.join(open_ones)}."
    ]


def _of_row(change: Adjusted) -> str:
    """What the row is, beside the full method."""
    if not change.significant:
        return UNDECIDED
    return BETTER if change.interval.mean > 0 else WORSE


def _rows(names: list[str]) -> str:
    if len(names) > NAMED:  # a sentence that nobody reads to its end says nothing
        return f"{len(names)} (named in the table of differences)"
    return f"{len(names)} ({', '.join(names)})"


def _since_training(results: Results) -> list[str]:
    """What training gave the full method, of each number of updates that it was measured at, seed by seed."""
    trained = {row.name: row for row in results.trained if row.seeds}
    fulls = [trained[name] for name in compared_with(trained) if name in trained]
    before = results.row("before").values.get(MEAN, {})
    gains = {row.label: gain for row in fulls if (gain := paired(row.values.get(MEAN, {}), before))}
    if not gains:
        return [f"Not compared with {OTHERS['before']}: there is no evaluation of it."]
    return [_gained(f"The {FULL_METHOD}" if len(fulls) == 1 else name, gain) for name, gain in gains.items()]


def _gained(name: str, gain: Interval) -> str:
    word, measured = judged(gain, 2), points(gain) if gain.half else f"{signed(gain.mean)} points"
    verdict = word if word in (BETTER, WORSE, UNDECIDED) else "measured"
    return f"{name} against {OTHERS['before']}: {verdict}, mean recall {measured}."
