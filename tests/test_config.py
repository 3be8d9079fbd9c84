"""Recipes as data: names, overrides, what each stage reads, what cannot run."""

import dataclasses
from itertools import combinations

import pytest

from cmapkd_core.config import STAGE_PHASES, Recipe, Schedule, phases_of
from cmapkd_core.errors import InputError
from cmapkd_core.fields import as_overrides, differences, flatten, nearest, override, parse_overrides
from cmapkd_core.fingerprints import fingerprint, reads
from cmapkd_core.method_specs import METHODS
from cmapkd_core.recipes import (
    BASELINES,
    CHANGES,
    RECIPES,
    REFERENCE,
    ROWS,
    SUITES,
    data_fields,
    resolve,
    row_overrides,
)
from cmapkd_core.view import NO_RESULT

STAGES = ("prepare", "teacher", *STAGE_PHASES)


def prints(recipe: Recipe) -> dict[str, str]:
    return {stage: fingerprint(reads(recipe, stage)) for stage in STAGES}


def shared(one: Recipe, two: Recipe) -> set[str]:
    """Stages whose artifact both recipes share."""
    return {stage for stage in STAGES if prints(one)[stage] == prints(two)[stage]}


# ---- access by name -------------------------------------------------------------------------------


def test_overrides_are_read_as_the_fields_type():
    text = """optim.batch=64 optim.clip_norm=0.5
    data.crop_scale=0.4,1 schedule.fine.levels=P5,L4 schedule.fine.selects=False teacher.model=ViT-B-32"""
    recipe = override(RECIPES["tiny"], parse_overrides(text))
    assert recipe.optim.batch == 64
    assert recipe.optim.clip_norm == 0.5
    assert recipe.data.crop_scale == (0.4, 1.0)
    assert recipe.schedule.fine.levels == ("P5", "L4")
    assert recipe.schedule.fine.selects is False
    assert recipe.teacher.model == "ViT-B-32"


def test_an_override_changes_its_field_and_no_other():
    one, two = flatten(RECIPES["paper"]), flatten(override(RECIPES["paper"], {"method.weights.align": 0.3}))
    assert {name for name in one if one[name] != two[name]} == {"method.weights.align"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim.btach=8", r"unknown field 'optim\.btach': did you mean 'optim\.batch'"),
        ("optim.batch=many", r"optim\.batch=many: expected int, such as optim\.batch=16"),
        ("optim.batch=2.5", r"optim\.batch=2\.5: expected int"),
        ("optim.clip_norm=x", r"optim\.clip_norm=x: expected float"),
        ("schedule.fine.selects=1", r"schedule\.fine\.selects=1: expected bool"),
        ("data.crop_scale=a,b", r"data\.crop_scale=a,b: expected tuple"),
        ("optim=3", r"unknown field 'optim'"),
        ("optim.batch", r"override 'optim\.batch' has no '='"),
    ],
)
def test_a_wrong_override_is_refused_with_the_way_out(text, message):
    with pytest.raises(InputError, match=message):
        resolve("tiny", overrides=text)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"recipe": "dmeo"}, "unknown recipe 'dmeo': did you mean 'demo'"),
        ({"recipe": "tiny", "ablation": "noalsn"}, "unknown ablation 'noalsn': did you mean 'no_alsn'"),
        ({"recipe": "tiny", "overrides": "method.name=cmapk"}, "unknown method 'cmapk': did you mean 'cmapkd'"),
    ],
)
def test_an_unknown_name_gets_the_nearest(given, message):
    with pytest.raises(InputError, match=message):
        resolve(**given)


def test_nearest_lists_all_where_none_is_close():
    assert nearest("zzz", ["warmup", "joint"]) == "one of: warmup, joint"


def test_rows_win_over_the_recipe_and_overrides_over_rows():
    assert resolve("tiny", "no_relation").method.weights.relation == 0
    assert resolve("tiny", "no_relation", "method.weights.relation=0.7").method.weights.relation == 0.7
    assert resolve("tiny", seed=5).seed == 5
    assert resolve("tiny", seed="").seed == RECIPES["tiny"].seed
    data = resolve("tiny", data="folder:s3://bucket/a:b").data
    assert (data.source, data.url) == ("folder", "s3://bucket/a:b")


def test_a_row_can_be_written_as_overrides():
    for row, changes in ROWS.items():
        assert override(resolve("tiny"), changes) == override(resolve("tiny"), parse_overrides(as_overrides(changes)))
        assert parse_overrides(row_overrides(row, as_overrides(changes) + " optim.batch=8")) == {"optim.batch": "8"}
    assert as_overrides({"a": True, "b": (1, 2), "c": ""}) == "a=true b=1,2 c="


def test_recipes_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        RECIPES["tiny"].optim.batch = 3  # type: ignore[misc]


PHASES = tuple(phases_of(Schedule()))

# ---- the rows -------------------------------------------------------------------------------------


def test_the_paper_recipe_is_table_1():
    recipe = resolve("paper")
    schedule, weights = recipe.schedule, recipe.method.weights
    assert [getattr(schedule, name).epochs for name in PHASES] == [5, 5, 5, 10]
    assert (schedule.coarse.lr.student, schedule.medium.lr.student, schedule.fine.lr.student) == (5e-5, 3e-5, 1e-5)
    assert (schedule.alsn.lr.selector, schedule.fine.lr.selector, schedule.fine.lr.pyramid) == (1e-4, 5e-5, 5e-6)
    assert (weights.intra, weights.align, weights.relation, weights.task) == (1.0, 0.5, 0.3, 0.1)
    assert (weights.kd, weights.fd) == (0, 0)
    assert recipe.optim.batch == 256
    assert (recipe.teacher.model, recipe.student.model) == ("ViT-L-14", "ViT-B-16")


def test_the_calibrated_recipe_is_the_papers_but_for_what_was_measured_and_outline_undoes_it():
    paper, calibrated = flatten(resolve("paper")), flatten(resolve("calibrated"))
    changed = {name for name in paper if paper[name] != calibrated[name]}
    weights = {f"method.weights.{term}" for term in ("task", "fd", "kd", "icl", "vrd", "vrd_contrast", "xrd")}
    assert changed == {"name", "selector.kind", "method.one_map", *weights}
    assert flatten(resolve("calibrated", "outline")) == paper | {"name": "calibrated"}


def test_weights_are_those_that_were_measured_with_towers_of_their_kind():
    """Recipes with vision transformers have those of twins, and fd where there is a map; all others bench's."""
    assert resolve("calibrated").method.weights == resolve("twins", "fd_16").method.weights
    assert not resolve("twins").method.weights.fd
    assert {resolve(name).method.weights for name in ("demo", "own", "twin_teacher")} == {
        resolve("bench").method.weights
    }
    assert resolve("twins", "bench_weights").method.weights == resolve("bench").method.weights
    same = resolve("bench", overrides="method.weights.intra=1 method.weights.fd=0")
    assert resolve("twins", "no_similarities").method.weights == same.method.weights


@pytest.mark.parametrize(("recipe", "suite"), [("calibrated", "terms"), ("twins", "twins")])
def test_no_two_rows_of_a_suite_about_terms_are_the_same(recipe, suite):
    """A row that leaves all but one kind of terms out has that kind, though the recipe's full method has none of it."""
    rows = {row: resolve(recipe, row) for row in SUITES[suite]}
    assert [(a, b) for a, b in combinations(rows, 2) if rows[a] == rows[b]] == []
    weighs = {term: weight for term, weight in vars(rows["fd_alone"].method.weights).items() if weight}
    assert weighs == {"task": 1.0, "fd": 16.0, "policy": 1.0}  # the last is ALSN's own, without effect on the student


@pytest.mark.parametrize(
    ("recipe", "nothing"),
    [
        ("calibrated", {"one_map", "no_alsn", "fd_16", "with_kd", "with_icl", "with_rd", "with_similarities"}),
        ("bench", {"two_maps", "alsn", "fd_16", "intra_16", "no_similarities", "bench_weights"}),
    ],
)
def test_rows_name_fields_that_exist_and_change_something(recipe, nothing):
    """But for rows that give a recipe the selector or the terms that it has."""
    for table in (*CHANGES.values(), BASELINES):
        for name, changes in table.items():
            assert (resolve(recipe, name) == resolve(recipe)) == (name in nothing), name
            assert set(changes) <= set(flatten(RECIPES["paper"]))
    assert REFERENCE in BASELINES
    assert set(ROWS) == {"none", *BASELINES, *(name for table in CHANGES.values() for name in table)}


# ---- what a stage reads ---------------------------------------------------------------------------


def test_runtime_changes_no_fingerprint():
    changed = resolve("tiny", overrides="runtime.workers=3 runtime.checkpoint_every=7 runtime.cache_gb=1.5")
    assert shared(resolve("tiny"), changed) == set(STAGES)


@pytest.mark.parametrize("recipe", list(RECIPES))
@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("shuffled_alsn", {"prepare", "teacher", "warmup"}),
        ("no_relation", {"prepare", "teacher"}),
        ("finetune", {"prepare", "teacher"}),
        ("kd", {"prepare", "teacher"}),
    ],
)
def test_rows_share_the_stages_before_they_differ(recipe, row, expected):
    assert shared(resolve(recipe), resolve(recipe, row)) == expected


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_a_warm_up_does_not_depend_on_whether_levels_get_learned_weights(recipe):
    rows = resolve(recipe, "alsn"), resolve(recipe, "no_alsn")
    assert shared(*rows) == {"prepare", "teacher", "warmup"}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("seed=9", {"prepare", "teacher"}),
        ("teacher_fit.seed=9", {"prepare"}),
        ("data.fraction=0.5", {"prepare", "teacher"}),
        ("data.size=50", set()),
        ("schedule.fine.epochs=3", {"prepare", "teacher", "warmup", "alsn"}),
        ("schedule.coarse.epochs=3", {"prepare", "teacher"}),
        ("schedule.fine.levels=P5,L4", {"prepare", "teacher"}),  # warm-up measures them, stage alsn weighs them
        ("selector.tau=0.5", {"prepare", "teacher", "warmup"}),
        ("selector.toward=task,kd", {"prepare", "teacher"}),
        ("evaluate.split=val", set(STAGES)),
        ("student.weights=other.safetensors", {"prepare", "teacher"}),
        ("student.model=ViT-B-32", {"prepare"}),
        ("optim.batch=8", {"prepare", "teacher"}),
        ("optim.max_skipped=3", {"prepare"}),
        ("optim.rollbacks=1", {"prepare"}),
    ],
)
def test_a_field_reaches_the_stages_that_read_it(change, expected):
    assert shared(resolve("tiny"), resolve("tiny", overrides=change)) == expected


def test_parts_that_see_the_whole_batch_make_artifacts_of_their_own():
    """Before, the pairs of a part were compared with each other alone; a batch in one piece is what it was."""
    one, two = (reads(resolve("paper", "kd", f"optim.accumulate={parts}"), "joint") for parts in (1, 2))
    assert one["optim.accumulate"] == 1
    assert differences(two, one) == ["optim.accumulate: 1 -> 2 parts of a batch"]
    assert fingerprint(two) != fingerprint(two | {"optim.accumulate": 2})


def test_artifacts_made_before_updates_were_watched_keep_their_places():
    younger = ("max_skipped", "gradient_spike", "loss_spike", "rollbacks")
    assert not {f"optim.{name}" for name in younger} & {
        name for stage in STAGES for name in reads(resolve("tiny"), stage)
    }


def test_a_method_without_a_teacher_does_not_depend_on_it():
    changed = resolve("tiny", "finetune", "teacher_fit.seed=9 method.weights.fd=3 pyramid.width=99 selector.tau=9")
    assert shared(resolve("tiny", "finetune"), changed) >= set(STAGE_PHASES)


def test_every_field_that_no_fingerprint_holds_is_known():
    """A field that changes results and that no stage reads would let two recipes share an artifact."""
    gate = "data.splits=train data.leakage=ids data.leakage_action=drop data.against=x teacher_fit.views=2"
    gate += " teacher_fit.store=levels selector.toward=task,kd data.repack=256"
    gate += " teacher_fit.levels=int8 data.noise=0.2 data.unpaired=0.2 method.unpaired=2"
    gate += " optim.max_skipped=3 optim.gradient_spike=9 optim.loss_spike=9 optim.rollbacks=1"
    gate += " optim.teacher_precision=fp32 optim.matmul_precision=high selector.measured=0.5 schedule.frozen_quarters=1"
    recipes = [*(resolve("tiny", row) for row in ROWS), resolve("tiny", overrides=gate)]
    read = {name for recipe in recipes for stage in STAGES for name in reads(recipe, stage)}
    unread = {n for n in flatten(recipes[0]) if n not in read and not n.startswith((*NO_RESULT, "evaluate."))}
    # Rates of what the teacher's phases and the selector's lack.
    others = {n for n in unread if n.startswith(("schedule.alsn.lr.", "teacher_fit.")) and ".lr." in n}
    assert unread - others == {"name", "schedule.times"}  # the second is 1 in what is resolved


@pytest.mark.parametrize("row", list(BASELINES))
def test_a_baseline_gives_every_term_of_its_method_a_weight(row):
    """Else the recipe's own weights, meant for cmapkd, would leak into it."""
    recipe = resolve("demo", row)
    given = {name.rpartition(".")[2] for name in BASELINES[row] if name.startswith("method.weights.")}
    assert given == set(METHODS[recipe.method.name].terms)


@pytest.mark.parametrize("row", list(BASELINES))
@pytest.mark.parametrize("name", list(RECIPES))
def test_a_baseline_has_the_methods_data_batches_and_updates(name, row):
    """The budget: the same pairs, crops and number of updates for all."""
    ours, theirs = resolve(name, row), resolve(name)
    assert (ours.data, ours.optim, ours.seed, ours.teacher) == (theirs.data, theirs.optim, theirs.seed, theirs.teacher)
    for phase in PHASES:
        assert getattr(ours.schedule, phase).epochs == getattr(theirs.schedule, phase).epochs
        lr = getattr(ours.schedule, phase).lr
        assert phase == "alsn" or lr.student > 0 or lr.heads > 0


def test_terms_of_a_phase_are_checked():
    with pytest.raises(InputError, match="unknown term 'hnt': did you mean 'hint'"):
        resolve("tiny", "fitnet", "schedule.coarse.terms=hnt")
    with pytest.raises(InputError, match=r"schedule\.coarse\.terms=icl has no term of this method: add one of hint"):
        resolve("tiny", "fitnet", "schedule.coarse.terms=icl")


def test_terms_that_do_not_count_in_a_phase_have_no_weight():
    recipe = resolve("tiny", "fitnet")
    weights = {name: recipe.method.weights.within(getattr(recipe.schedule, name)) for name in ("coarse", "fine")}
    assert {t: w for t, w in weights["coarse"].items() if w} == {"hint": 1}
    assert {t: w for t, w in weights["fine"].items() if w} == {"task": 1, "kd": 1}


def test_an_unknown_stage_is_refused():
    with pytest.raises(InputError, match="unknown stage 'wramup': did you mean 'warmup'"):
        reads(resolve("tiny"), "wramup")


def test_fingerprints_do_not_depend_on_order_or_sequence_type():
    assert fingerprint({"a": (1, 2), "b": "x"}) == fingerprint({"b": "x", "a": [1, 2]})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
    assert len(fingerprint({})) == 12


def test_differences_name_the_field_and_both_values():
    one, two = flatten(resolve("tiny")), flatten(resolve("tiny", "no_alsn", "optim.batch=8"))
    assert differences(two, one) == ["selector.kind: alsn -> fixed", "optim.batch: 16 -> 8"]
    assert differences({"a": (1,)}, {"a": [1]}) == []  # JSON has no tuples
    assert differences({"new": 1}, {}) == ["new: None -> 1"]


# ---- what cannot run ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "overrides", "message"),
    [
        (
            "none",
            "schedule.coarse.lr.student=0 schedule.coarse.lr.pyramid=0",
            r"schedule\.coarse has 1 epochs and trains nothing: set one of schedule\.coarse\.lr\.student, .*pyramid",
        ),
        (
            "finetune",
            "schedule.fine.lr.student=0",
            r"schedule\.fine .*trains nothing: set one of schedule.fine.lr.student",
        ),
        ("none", "schedule.alsn.lr.selector=0", r"schedule\.alsn .*trains nothing"),
        ("shuffled_alsn", "schedule.alsn.lr.selector=0", r"schedule\.alsn .*trains nothing"),
        ("random_alsn", "schedule.medium.selects=true", r"schedule\.medium\.selects=true: .*only schedule\.fine"),
        ("none", "schedule.fine.selects=false", r"schedule\.fine\.selects=false .*set that rate to 0 too"),
        ("none", "teacher_fit.pyramid.lr.pyramid=0", r"teacher_fit\.pyramid .*trains nothing"),
        (
            "none",
            "schedule.coarse.epochs=0 schedule.medium.epochs=0 schedule.fine.epochs=0",
            r"the schedule trains no student: give schedule\.fine\.epochs",
        ),
        ("none", "schedule.coarse.levels=P5", r"schedule\.coarse\.levels=P5 has none of pyramid\.text_levels"),
        ("none", "schedule.fine.levels=P5,L4,P9", r"schedule\.fine\.levels names P9"),
        ("none", "pyramid.vision_levels=P2", r"schedule\.coarse\.levels=P5,L4 has none of pyramid\.vision_levels=P2"),
        ("none", "optim.batch=0", r"optim\.batch=0: it must be at least 1"),
        ("none", "data.fraction=0", r"data\.fraction=0\.0"),
        ("none", "selector.weights=1,1", r"selector\.weights=.*four weights"),
        ("none", "selector.kind=alns", r"unknown selector 'alns': did you mean 'alsn'"),
        ("none", "optim.batch=5 optim.accumulate=2", r"optim\.batch=5 .*optim\.accumulate=2"),
        ("none", "teacher_fit.alpha=learnd", r"unknown teacher_fit.alpha 'learnd': did you mean 'learned'"),
        ("none", "pyramid.vision_levels=P4,p5", r"unknown level of pyramid.vision_levels 'p5': did you mean 'P5'"),
        ("none", "evaluate.split=tset", r"unknown evaluate.split 'tset': did you mean 'test'"),
        ("none", "runtime.shares_every=0", r"runtime\.shares_every=0: it must be at least 1"),
        ("none", "runtime.cache_gb=-1", r"runtime\.cache_gb=-1\.0: it cannot be below 0"),
        ("none", "runtime.checkpoint_every=-1", r"runtime\.checkpoint_every=-1: it cannot be below 0"),
        ("none", "runtime.checkpoint_minutes=nan", r"runtime\.checkpoint_minutes=nan"),
        (
            "none",
            "runtime.checkpoint_every=0 runtime.checkpoint_minutes=0",
            r"a stage that is killed would begin again; give one of them, such as runtime\.checkpoint_minutes=5",
        ),
        ("none", "data.samples_per_shard=0", r"data\.samples_per_shard=0: it must be at least 1"),
        ("none", "seed=-1", r"seed=-1: it cannot be below 0"),
        ("none", "data.crop_scale=0.9", r"data\.crop_scale=0\.9: the least and the largest"),
        ("none", "data.crop_scale=0.9,0.5", r"data\.crop_scale=0\.9,0\.5: the least and the largest"),
        ("none", "schedule.coarse.lr.selector=0.1", r"schedule\.coarse\.selects=false .*set that rate to 0 too"),
        ("none", "data.source=foldr", r"unknown data source 'foldr': did you mean 'folder'"),
        ("none", "evaluate.sets=retrieval=koko:/x", r"unknown data source 'koko': did you mean 'coco'"),
        ("none", "evaluate.sets=retrieval=folder:/a,zeroshot=folder:/b", r"two sets of source folder, .*/a and .*/b"),
        ("none", "schedule.fine.epochs=-1", r"schedule\.fine\.epochs=-1: it cannot be below 0"),
        ("none", "schedule.fine.lr.student=-1e-5", r"schedule\.fine\.lr\.student=-1e-05: it cannot be below 0"),
        ("none", "schedule.fine.terms=kd", r"phase schedule\.fine trains a student by nothing: no term among .*=kd"),
        ("finetune", "method.weights.task=0", r"phase schedule\.coarse trains a student by nothing: no term has"),
        ("none", "schedule.fine.terms=intra", r"schedule\.fine leaves out term policy, which alone"),
        ("none", "method.weights.policy=0", r"schedule\.fine leaves out term policy, which alone"),
        ("none", "teacher_fit.pyramid.levels=P5,L4", r"teacher_fit\.pyramid fits all levels"),
        ("none", "teacher_fit.pyramid.terms=contrast", r"teacher_fit\.pyramid fits all levels"),
        ("none", "method.kd_tau=0", r"method\.kd_tau=0\.0: it must be above 0"),
        ("none", "selector.utility_tau=0", r"selector\.utility_tau=0\.0: it must be above 0"),
        ("none", "method.weights.fd=-1", r"method\.weights\.fd=-1\.0: it cannot be below 0"),
        ("none", "optim.gradient_spike=0.5", r"optim\.gradient_spike=0\.5: it must be above 1, or 0"),
        ("none", "optim.loss_spike=1", r"optim\.loss_spike=1\.0: it must be above 1, or 0"),
        ("none", "optim.beta2=1", r"optim\.beta2=1\.0: it must be from 0 to below 1"),
        ("none", "teacher_fit.dropout=1.5", r"teacher_fit\.dropout=1\.5: it must be from 0 to 1"),
        ("none", "optim.precision=fp8", r"unknown precision 'fp8': did you mean"),
    ],
)
def test_a_recipe_that_cannot_run_is_refused_before_anything_starts(row, overrides, message):
    with pytest.raises(InputError, match=message):
        resolve("tiny", row, overrides)


def test_a_method_without_levels_does_not_care_for_them():
    assert resolve("tiny", "kd", "schedule.coarse.levels=P5").schedule.coarse.levels == ("P5",)


def test_two_tasks_may_share_one_set():
    recipe = resolve("tiny", overrides="evaluate.sets=retrieval=folder:/a,zeroshot=folder:/a,vqa")
    assert recipe.evaluate.own() == [("retrieval", "folder:/a"), ("zeroshot", "folder:/a"), ("vqa", "")]


def test_method_specs_are_complete():
    for name, spec in METHODS.items():
        assert spec.terms, name
        assert "student" in spec.groups


# ---- how much of a source -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "size"),
    [
        ({}, 96),
        ({"data": "scenes_vqa"}, 96),  # generated too
        ({"data": "folder:/pictures"}, 0),
        ({"overrides": "data.source=folder data.url=/pictures"}, 0),
        ({"data": "folder:/pictures", "overrides": "data.size=7"}, 7),
        ({"overrides": "data.size=7 data.source=folder data.url=/pictures"}, 7),
        ({"overrides": f"data.size=7 {as_overrides(data_fields('coco:/coco'))}"}, 0),  # an evaluation's own data
    ],
)
def test_the_number_of_generated_pictures_is_no_limit_of_other_sources(given, size):
    assert resolve("tiny", **given).data.size == size


def test_a_longer_schedule_has_more_epochs_of_students_alone() -> None:
    """A resolved recipe has the products and no factor, so that whatever reads epochs reads those that are trained."""
    usual, longer = resolve("demo"), resolve("demo", overrides="schedule.times=3 schedule.fine.epochs=2")
    epochs = [getattr(longer.schedule, name).epochs for name in ("coarse", "medium", "alsn", "fine")]
    assert epochs == [12, 12, usual.schedule.alsn.epochs, 6]
    assert longer.schedule.times == 1
    assert longer.teacher_fit == usual.teacher_fit


def test_a_row_of_a_budget_is_its_row_for_longer() -> None:
    for row, short in (("clip_kd_10x", "clip_kd"), ("full_3x", "none"), ("no_fd_3x", "no_fd")):
        times = int(row.rpartition("_")[2].removesuffix("x"))
        assert resolve("bench", row, data="scenes") == resolve(
            "bench", short, overrides=f"schedule.times={times}", data="scenes"
        )
