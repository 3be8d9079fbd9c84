"""Overrides travel as one string through shells, KFP's parameters and argv: every value comes out as it went in."""

import shlex

import pytest

from cmapkd.pipelines.package import LABEL, label_of
from cmapkd_core.config import Recipe
from cmapkd_core.errors import InputError
from cmapkd_core.fields import as_overrides, flatten, joined, override, parse_overrides
from cmapkd_core.recipes import resolve

VALUES = [
    "/my pictures",
    "tom's",
    'say "a b"',
    "a\\b",
    "x=y",
    "a  b",
    "line\nbreak",
    " ",
    "",
    "~$HOME;#*",
    "日本 語",
    "a,b",
]


@pytest.mark.parametrize("value", VALUES)
def test_every_value_survives(value):
    changes = {"data.url": value, "optim.batch": "8"}
    assert parse_overrides(as_overrides(changes)) == changes
    assert parse_overrides(as_overrides(changes) + " " + as_overrides({"seed": 1})) == changes | {"seed": "1"}
    assert resolve("tiny", overrides=as_overrides({"data.url": value})).data.url == value
    assert parse_overrides(joined([f"data.url={value}", "seed=1"])) == {"data.url": value, "seed": "1"}


@pytest.mark.parametrize(
    "parts", [("a b", "c,d"), ("vqa=folder:/my, pictures", "captioning"), (), ("one",), ('a"b', "c")]
)
def test_every_part_of_a_tuple_survives(parts):
    changed = override(Recipe(), parse_overrides(as_overrides({"evaluate.sets": parts})))
    assert changed.evaluate.sets == parts


def test_what_was_written_before_reads_as_before():
    text = "optim.batch=64 data.crop_scale=0.4,1\n data.url=s3://bucket/a:b method.weights.kd=2 student.weights=x@y.pt"
    assert parse_overrides(text) == dict(part.split("=", 1) for part in text.split())
    assert parse_overrides(joined(["optim.batch=64 data.fraction=0.5", "seed=3"])) == {
        "optim.batch": "64",
        "data.fraction": "0.5",
        "seed": "3",
    }


@pytest.mark.parametrize(
    ("text", "message", "way_out"),
    [
        ("data.url=/my pictures", "'data.url=/my pictures'", "'data.url=/my pictures'"),
        ("data.url=/tom's pictures", "a quote is not closed", '"data.url=/tom\'s pictures"'),
    ],
)
def test_a_value_with_a_blank_says_how_it_is_written(text, message, way_out):
    with pytest.raises(InputError) as caught:
        parse_overrides(text)
    assert message in str(caught.value)
    assert way_out in str(caught.value)
    assert set(parse_overrides(way_out)) == {"data.url"}


def test_a_shell_takes_the_quotes_off_once():
    given = shlex.split("--set 'data.url=/my pictures' --set optim.batch=8")[1::2]
    assert parse_overrides(joined(given)) == {"data.url": "/my pictures", "optim.batch": "8"}
    assert parse_overrides(joined(["'data.url=/my pictures' seed=2"])) == {"data.url": "/my pictures", "seed": "2"}


NUMBERS = {name: value for name, value in flatten(Recipe()).items() if type(value) in (int, float)}


@pytest.mark.parametrize("name", NUMBERS)
def test_no_number_may_be_what_no_run_can_use(name):
    for value in ("nan", "inf", "-inf", "1e400"):
        with pytest.raises(InputError, match=rf"^{name}="):
            resolve("tiny", overrides=f"{name}={value}")
    if name == "method.kendall":  # a rank correlation
        assert resolve("tiny", overrides=f"{name}=-1").method.kendall == -1
        return
    with pytest.raises(InputError, match=rf"^{name}="):
        resolve("tiny", overrides=f"{name}=-1")


@pytest.mark.parametrize("text", ["data.crop_scale=nan,1", "selector.weights=inf,0,0,1", "selector.weights=1,-1,1,1"])
def test_no_number_of_a_tuple_either(text):
    with pytest.raises(InputError, match=f"^{text.partition('=')[0]}="):
        resolve("tiny", overrides=text)


# What is wrong, what the message offers, and the offer as overrides.
REMEDIES = [
    ("schedule.coarse.selects=true", "only schedule.fine can select", "schedule.coarse.selects=false"),
    ("schedule.fine.selects=false", "set that rate to 0 too", "schedule.fine.lr.selector=0"),
    ("schedule.fine.terms=intra,task", "set schedule.fine.lr.selector to 0", "schedule.fine.lr.selector=0"),
    ("schedule.fine.terms=intra,task", "name it in schedule.fine.terms", "schedule.fine.terms=intra,task,policy"),
    ("selector.toward=kd", "give one of method.weights", "method.weights.kd=1"),
    ("schedule.fine.terms=hint", "add one of intra", "schedule.fine.terms=hint,intra,policy"),
    ("schedule.fine.levels=P2", "add one", "schedule.fine.levels=P2,L4"),
    ("optim.batch=8 optim.accumulate=3", "use a multiple", "optim.batch=9"),
    ("data.crop_scale=1,0.5", "such as 0.9,1.0", "data.crop_scale=0.9,1.0"),
    ("selector.weights=1,2", "four weights", "selector.weights=1,2,0,0"),
    ("evaluate.sets=vqa=folder:/a,captioning=folder:/b", "give one of them here", "evaluate.sets=vqa=folder:/a"),
    (
        "teacher_fit.pyramid.levels=P5",
        "leave out teacher_fit.pyramid.levels",
        "teacher_fit.pyramid.levels=P2,P3,P4,P5,L1,L2,L3,L4",
    ),
    (
        "schedule.coarse.epochs=0 schedule.medium.epochs=0 schedule.fine.epochs=0",
        "give schedule.fine.epochs at least 1",
        "schedule.fine.epochs=1",
    ),
    (
        "schedule.fine.lr.student=0 schedule.fine.lr.pyramid=0 schedule.fine.lr.selector=0",
        "set one of",
        "schedule.fine.lr.student=1e-4",
    ),
    ("method.name=kd schedule.fine.terms=kd", "give one of method.weights.{task,kd} above 0", "method.weights.kd=1"),
]


@pytest.mark.parametrize(("wrong", "offer", "remedy"), REMEDIES)
def test_what_a_refused_recipe_is_offered_leads_out(wrong, offer, remedy):
    with pytest.raises(InputError) as caught:
        resolve("tiny", overrides=wrong)
    assert offer in str(caught.value)
    resolve("tiny", overrides=f"{wrong} {remedy}")


def test_long_names_stay_apart_as_labels():
    names = [f"evaluate-{'x' * 60}-{n}" for n in range(3)] + ["short", "y" * LABEL, "z" * 53 + "-_." + "z" * 20]
    labels = [label_of(name) for name in names]
    assert len({*labels}) == len(names)
    assert labels[3:5] == names[3:5]
    for label in labels:
        assert len(label) <= LABEL
        assert label[0].isalnum()
        assert label[-1].isalnum()
