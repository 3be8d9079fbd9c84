"""CMAPKD: fitted pyramids in both towers, weights per sample, three distillation losses (the paper).

L = 1.0 intra + 0.5 align + 0.3 relation + 0.1 task   (+ terms of embeddings, 0 in the paper's form)
intra    = mean_b sum_i w_v[b,i] d(P_i^S, P_i^T) + the same for L_j          (losses/intra.py)
align    = L_single + beta L_pyramid                                         (losses/align.py)
relation = sample relation of levels and of embeddings + gamma layer CKA     (losses/relation.py)
task     = symmetric InfoNCE of the student's CLIP embeddings                (losses/similarity.py)
icl      = each model's embeddings against the other's of the other modality        (losses/embeddings.py)
bank     = similarities with the teacher's embeddings of fixed training pairs       (methods/bank.py)
vrd, vrd_contrast, xrd = relations between student and teacher                      (methods/relations.py)
policy   = KL(q || w) + 0.1 KL(w || uniform): ALSN's own loss, no gradient to the student

Of several teachers fd compares with the embeddings of all beside each other, the other terms of embeddings and the
relation of embeddings are means over them, and levels are those of the first (docs/decisions/0032).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cmapkd_core import parallel
from cmapkd_core.catalog import SELECTORS, load
from cmapkd_core.config import TEXT_LEVELS, VISION_LEVELS, Phase, Recipe
from cmapkd_core.data.loader import Batch
from cmapkd_core.losses import intra
from cmapkd_core.losses.align import align, pyramid, single
from cmapkd_core.losses.policy import utilities
from cmapkd_core.losses.relation import layer_relation, sample_relation
from cmapkd_core.losses.similarity import feature_distance
from cmapkd_core.losses.streamed import Ranks, info_nce, interactive, margin
from cmapkd_core.methods.bank import Bank
from cmapkd_core.methods.base import (
    Method,
    Outcome,
    Rows,
    gathered,
    mean_over,
    ranks,
    require,
    require_teacher,
    similar,
)
from cmapkd_core.methods.global_batch import GlobalBatch, Pair, add_levels, embedding_grams
from cmapkd_core.methods.lifts import Lifts, add_raw
from cmapkd_core.methods.policy_fit import PolicyFit, PolicyMemory, describe
from cmapkd_core.methods.relations import TERMS as RELATIONS
from cmapkd_core.methods.relations import Relations
from cmapkd_core.models.backbones import Backbone
from cmapkd_core.models.bridge import Levels, LevelTower
from cmapkd_core.models.features import Features
from cmapkd_core.models.frozen_teacher import Embeddings, LevelTargets, PictureTargets, Teacher
from cmapkd_core.models.selector import Uniform

# Factors of the goal before utilities are measured, by the towers' type; bf16 has the range of fp32 and needs none.
SCALES: dict[torch.dtype | None, tuple[float, ...]] = {torch.float16: (2.0**16, 2.0**8, 1.0)}


class Cmapkd(Method):
    """The student, its levels, the selector, and the utilities that the selector learns from."""

    def __init__(self, recipe: Recipe, student: Backbone, teacher: Teacher | None) -> None:
        super().__init__(recipe, student, teacher)
        teacher = require_teacher(teacher)
        teacher_width, spec = teacher.width, student.spec
        self.levels = LevelTower(spec, spec.vision_grids[2], recipe.pyramid.width)
        # Some terms compare embeddings, so a student of another width is lifted to the teacher's for these terms alone.
        self.lifts = Lifts(student, teacher, recipe.method.one_map)
        self.bank = Bank(recipe.method.bank if recipe.method.weights.bank else 0, teacher_width)
        self.relations = Relations(tuple(term for term in RELATIONS if vars(recipe.method.weights)[term]))
        self.selector = load("selector", recipe.selector.kind, SELECTORS)(teacher_width, teacher_width, recipe.selector)
        # With one level a modality it has nothing to choose, and no phase trains it.
        self.selector.requires_grad_(bool(self.selector.used(self.active(Phase()))))
        self.uniform = Uniform()
        self.memory = PolicyMemory(recipe.optim.batch, teacher_width)

    def groups(self, phase: Phase) -> dict[str, list[nn.Parameter]]:
        """The student, the parts of its pyramid that the phase's levels reach, the selector."""
        pyramid = [*self.levels.used(self.active(phase)), *self.lifts.parameters(), *self.relations.parameters()]
        return super().groups(phase) | {"pyramid": pyramid, "selector": self.selector.used(self.active(phase))}

    def begin(self, teacher: Teacher | None) -> list[str]:
        """Start the level modules from the teacher's where the recipe says so; says how many tensors fit.

        Of maps into the teacher's joint space it says that one would do, where there are two that a term reads.
        """
        weights = vars(self.recipe.method.weights)
        lines = self.lifts.advice() if any(weights[term] for term in ("fd", "icl", "bank", *RELATIONS)) else []
        if not self.recipe.pyramid.inherit:
            return lines
        teacher_state = require_teacher(teacher).levels.state_dict()
        own_state = self.levels.state_dict()
        fitting = {name: x for name, x in teacher_state.items() if x.shape == own_state[name].shape}
        self.levels.load_state_dict(own_state | fitting)
        return [
            *lines,
            f"{len(fitting)} of the {len(own_state)} tensors of the student's levels start from the teacher's",
        ]

    def active(self, phase: Phase) -> tuple[str, ...]:
        """Levels that both the phase and the recipe have, finest first."""
        known = (*self.recipe.pyramid.vision_levels, *self.recipe.pyramid.text_levels)
        return tuple(n for n in (*VISION_LEVELS, *TEXT_LEVELS) if n in phase.levels and n in known)

    def lacks(self) -> int:
        """Pairs of the bank."""
        return self.bank.lacks()

    def keep(self, image: Tensor, text: Tensor) -> None:
        """The bank, [N,E'] twice."""
        self.bank.fill(image, text)

    def policy_fit(self) -> PolicyFit | None:
        """The selector on its own, at all of the recipe's levels; None where it has nothing to choose or to learn."""
        levels = self.active(self.recipe.schedule.fine)
        choosing = self.selector.learns and self.selector.used(levels)
        return PolicyFit(self.selector, self.recipe.selector, levels) if choosing else None

    def represent(self, batch: Batch, targets: Embeddings | None, phase: Phase) -> Rows:
        """The embeddings and the levels' vectors of both sides; distances of the levels `d_v`, `d_l` [b,4].

        Where the bank has a weight, what each pair pays there too, `bank_v` and `bank_l` [b].
        """
        teacher = require(targets, LevelTargets)
        vision, text = self.towers(batch)
        levels = self._levels(vision, text, self.active(phase))
        rows = add_raw(Rows.of(batch, teacher, vision, text), vision, text)
        rows.student["d_v"], rows.student["d_l"] = level_distances(levels, teacher.levels)
        rows.student |= self.bank.rows(self.lifts.own(vision, text), teacher, self.recipe.method.kd_tau)
        if batch.pictures is not None and teacher.pictures is not None:
            rows.student |= self._of_pictures(batch.pictures, teacher.pictures, self.active(phase))
        return add_levels(rows, levels, teacher.levels)

    def _of_pictures(self, batch: Batch, targets: PictureTargets, active: tuple[str, ...]) -> dict[str, Tensor]:
        """Of b pictures without captions: distances of their levels [b,4], and of their embeddings [b]."""
        with self.autocast():
            vision = self.student.vision(batch.images["student"])
            maps, _ = self.levels.pyramid(vision.taps, active)
        d = intra.distances({name: x.float() for name, x in maps.items()}, targets.maps, VISION_LEVELS)
        return {"d_pictures": d, "fd_pictures": intra.vector_distance(self.lifts.image.own(vision), targets.image)}

    def _with_pictures(self, rows: Rows, own: dict[str, Tensor], active: tuple[str, ...]) -> dict[str, Tensor]:
        """Terms of the pairs' pictures by name, each a mean over them, as means over those without captions too.

        Their weight is method.unpaired; their levels weigh the same, since a selector reads captions.
        """
        if "d_pictures" not in rows.student:
            return own
        d, fd = rows.student["d_pictures"], rows.student["fd_pictures"]
        alone = {"intra": intra.weighted(d, self.uniform(d, d, active)[0]), "fd": fd.mean()}
        weight = self.recipe.method.unpaired
        return {name: (own[name] + weight * alone[name]) / (1 + weight) for name in own}

    def compare(self, rows: Rows, phase: Phase, step: int) -> Outcome:
        """The terms of method_specs.METHODS["cmapkd"]."""
        teacher, active = rows.targets(LevelTargets), self.active(phase)
        d_v, d_l = rows.student["d_v"], rows.student["d_l"]
        selector = self.selector if phase.selects else self.uniform
        selector.look(self, rows, step, active)
        w_v, w_l = selector.choose(rows.teacher["image"], rows.teacher["text"], active)
        both = GlobalBatch.of(rows)
        lifted = self.lifts(rows, *both.student)
        on_embeddings = self._on_embeddings([*both.student, *both.teacher], lifted, teacher)
        if phase.selects and self.selector.learns and self.training and step % self.recipe.selector.every == 0:
            if self.recipe.selector.measured < 1 or not rows.roots:
                self.memory.keep(self._measure_anew(rows, both, lifted, active))
            else:
                u = torch.cat(measure(d_v, d_l, self._goal(on_embeddings), rows.roots, self.amp), dim=1)
                d, u = gathered(torch.cat((d_v, d_l), dim=1).detach(), u)
                self.memory.keep({"teacher_image": both.teacher[0], "teacher_text": both.teacher[1], "u": u, "d": d})
        pictures = {"intra": intra.weighted(d_v, w_v), "fd": feature_distance(lifted[0], both.teacher[0])}
        of_all = self._with_pictures(rows, pictures, active)
        terms = {
            "intra": of_all["intra"] + intra.weighted(d_l, w_l),
            "align": self._align(both, teacher),
            "relation": self._relation(both),
            **on_embeddings,
            **self.bank.terms(rows.student),
            **self.relations.terms(lifted, both.teacher, teacher),
            "fd": of_all["fd"] + feature_distance(lifted[1], both.teacher[1]),
            "policy": self._policy(phase, active),
        }
        return Outcome(terms, describe(w_v, w_l, active), rows.roots)

    def _policy(self, phase: Phase, active: tuple[str, ...]) -> Tensor:
        """The selector's own loss, a scalar; 0 where it chooses nothing, and has measured nothing to learn from."""
        if not phase.selects:
            return torch.zeros_like(self.memory.filled)
        return self.memory.loss(self.selector, active, self.recipe.selector)

    def _measure_anew(
        self, rows: Rows, both: GlobalBatch, lifted: tuple[Tensor, Tensor], active: tuple[str, ...]
    ) -> dict[str, Tensor]:
        """Rows for the memory of each rank's first pairs [n,..], selector.measured of all, run through the towers anew.

        A sample's utilities follow from its own gradients, so they are those that it has in the whole batch: the
        others' embeddings are there, as constants. Batch norms, which mix samples, are as at inference meanwhile.
        """
        local = sum(len(batch.keys) for batch, _ in rows.given)
        count, measured = max(1, round(self.recipe.selector.measured * local)), list[Tensor]()
        trained = [module for module in self.modules() if module.training]
        self.eval()
        for batch, targets in rows.given:
            done = sum(len(part) for part in measured)
            if done < count:
                some = slice(0, min(len(batch.keys), count - done))
                place = ranks().own(len(both.student[0])).start + done
                levels = require(targets, LevelTargets).levels.part(some)
                measured.append(self._measured(batch.part(some), levels, place, both, lifted, active))
        for module in trained:
            module.training = True
        d, u = torch.cat(measured).split(8, dim=1)
        whole = gathered(d, u, rows.teacher["image"][:count], rows.teacher["text"][:count])
        return dict(zip(("d", "u", "teacher_image", "teacher_text"), whole, strict=True))

    def _measured(
        self,
        batch: Batch,
        levels_t: Levels,
        first: int,
        both: GlobalBatch,
        lifted: tuple[Tensor, Tensor],
        active: tuple[str, ...],
    ) -> Tensor:
        """Distances and utilities [n,16] of pairs whose rows in the global batch begin at `first`."""
        vision, text = self.towers(batch)
        d_v, d_l = level_distances(self._levels(vision, text, active), levels_t)
        parts = (vision.embedding, text.embedding, *self.lifts.own(vision, text))
        sides = zip((*both.student, *lifted), parts, strict=True)
        image, caption, image_lifted, caption_lifted = (instead(whole, part.float(), first) for whole, part in sides)
        among = [image, caption, *both.teacher], (image_lifted, caption_lifted), both.targets
        goal = self._goal(self._on_embeddings(*among, Ranks()))
        u = measure(d_v, d_l, goal, [vision.root, text.root], self.amp)
        return torch.cat((d_v.detach(), d_l.detach(), *u), dim=1)

    def statistics(self, batch: Batch, targets: Embeddings | None) -> dict[str, Tensor]:
        """Rows for the ALSN stage at all of the recipe's levels, gathered over the ranks.

        Columns: d, u [B,8] (distances and utilities, P2..P5 then L1..L4), teacher_image and
        teacher_text [B,E], difficulty [B]: the teacher's minus the student's margin in the batch.
        """
        teacher = require(targets, LevelTargets)
        vision, text = self.towers(batch)
        student_levels = self._levels(vision, text, self.active(self.recipe.schedule.fine))
        d_v, d_l = level_distances(student_levels, teacher.levels)
        embeddings = gathered(vision.embedding, text.embedding, teacher.image, teacher.text)
        image, caption, image_t, caption_t = embeddings
        lifted = self.lifts(add_raw(Rows.of(batch, teacher, vision, text), vision, text), image, caption)
        goal = self._goal(self._on_embeddings(embeddings, lifted, teacher))
        u = torch.cat(measure(d_v, d_l, goal, [vision.root, text.root], self.amp), dim=1)
        d, u = gathered(torch.cat((d_v, d_l), dim=1).detach(), u)
        (difficulty,) = gathered(margin(similar(image_t, caption_t)) - margin(similar(image, caption)))
        return {"d": d, "u": u, "teacher_image": image_t, "teacher_text": caption_t, "difficulty": difficulty}

    def distances(self, batch: Batch, targets: Embeddings | None, active: tuple[str, ...]) -> Tensor:
        """Of the levels of b pairs, [b,8]: P2..P5, then L1..L4; 0 for those that are not active."""
        levels = self._levels(*self.towers(batch), active)
        return torch.cat(level_distances(levels, require(targets, LevelTargets).levels), dim=1)

    def _levels(self, vision: Features, text: Features, active: tuple[str, ...]) -> Levels:
        """The student's levels, made in the precision of its towers and compared in fp32."""
        with self.autocast():
            result: Levels = self.levels(vision, text, active).float()
            return result

    def _on_embeddings(
        self, embeddings: list[Tensor], lifted: tuple[Tensor, Tensor], of: Embeddings, among: Ranks | None = None
    ) -> dict[str, Tensor]:
        """The terms of config.EMBEDDING_TERMS.

        Args:
            embeddings: gathered, [B,E] each: the student's images and captions, the teacher's images and captions.
            lifted: the student's images and captions in the teacher's space, gathered, [B,E'].
            of: the teacher's targets: kd and icl are means over several teachers.
            among: as in `similar`.
        """
        image, caption, image_t, caption_t = embeddings
        logits = similar(image, caption, self.student.scale(), among)
        return {
            "task": info_nce(logits),
            "kd": self.kd_of_each(logits, (image, caption), (image_t, caption_t), of, among),
            "fd": feature_distance(lifted[0], image_t) + feature_distance(lifted[1], caption_t),
            "icl": _icl(lifted, (image_t, caption_t), of, among),
        }

    def _goal(self, on_embeddings: dict[str, Tensor]) -> Tensor:
        """What a level is to be of use for, a scalar: the terms of selector.toward as weighted in the total."""
        weights = vars(self.recipe.method.weights)
        return torch.stack([weights[name] * on_embeddings[name] for name in self.recipe.selector.toward]).sum()

    def _align(self, both: GlobalBatch, targets: LevelTargets) -> Tensor:
        """L_align, a scalar, over the gathered levels; the coarsest active levels stand for P5 and L4."""
        scale, student, teacher = self.levels.bridge.scale(), both.student_units, both.teacher_units
        crossed = student.coarsest().meet(teacher.coarsest(), scale), teacher.coarsest().meet(student.coarsest(), scale)
        rows = [VISION_LEVELS.index(n) for n in both.student_levels.vision()]
        columns = [TEXT_LEVELS.index(n) for n in both.student_levels.text()]
        # One by one: a list as an index is a copy to the device that is waited for.
        alpha = torch.stack([torch.stack([targets.alpha[row, column] for column in columns]) for row in rows])
        config = self.recipe.method
        pairs = student.meet(student, scale), teacher.meet(teacher, targets.level_scale)
        return align(single(*crossed), pyramid(*pairs, alpha, config.tau), config.pyramid_align)

    def _relation(self, both: GlobalBatch) -> Tensor:
        """Sample relation of coarsest levels and of embeddings, plus gamma times the layers' CKA: a scalar."""
        sample = sample_relation(both.student_units.coarsest().grams(), both.teacher_units.coarsest().grams())
        own, each = embedding_grams(*both.student), zip(*map(both.targets.each, both.teacher), strict=True)
        sample = sample + mean_over([sample_relation(own, embedding_grams(*teacher)) for teacher in each])
        sides = both.student_levels, both.teacher_levels
        layers = [
            layer_relation(*([side.vectors[n] for n in names] for side in sides))
            for names in (sides[0].vision(), sides[0].text())
        ]
        return sample + self.recipe.method.layer_relation * (layers[0] + layers[1]) / 2


def _icl(lifted: Pair, teacher: Pair, of: Embeddings, among: Ranks | None) -> Tensor:
    """Term `icl`, a scalar, its mean over teachers: images and captions, gathered, [B,E'] each; of: as of the terms."""
    each = zip(*map(of.each, (*lifted, *teacher)), of.scales(), strict=True)
    pairs = (
        (similar(image, text_t, scale, among), similar(text, image_t, scale, among))
        for image, text, image_t, text_t, scale in each
    )
    return mean_over([interactive(*crossed) for crossed in pairs])


def instead(whole: Tensor, part: Tensor, first: int) -> Tensor:
    """`whole` [B,..] without its gradient, and `part` [n,..] with its own in place of its rows from `first` on."""
    whole = whole.detach()
    return torch.cat((whole[:first], part, whole[first + len(part) :]))


def level_distances(student: Levels, teacher: Levels) -> tuple[Tensor, Tensor]:
    """d_v [b,4] of the maps and d_l [b,4] of the text vectors; 0 for levels that are not active."""
    texts, texts_t = ({n: side.vectors[n] for n in student.text()} for side in (student, teacher))
    return intra.distances(student.maps, teacher.maps, VISION_LEVELS), intra.distances(texts, texts_t, TEXT_LEVELS)


def measure(
    d_v: Tensor, d_l: Tensor, goal: Tensor, roots: list[Tensor], amp: torch.dtype | None
) -> tuple[Tensor, Tensor]:
    """Utilities u_v, u_l [b,4] at the towers' roots: the first taps, or the first above what is frozen.

    Args:
        roots: these, of the images [b,..] and of the captions [b,..].
        amp: the towers' autocast type. fp16 gets the largest of SCALES at which no gradient of any rank overflows: a
            goal's gradient passes through all ranks, so they must try the same ones.
    """
    for scale in SCALES.get(amp, (1.0,)):
        u = utilities(d_v, goal, roots[0], scale), utilities(d_l, goal, roots[1], scale)
        if scale == 1.0 or not parallel.any_rank(not torch.cat(u).isfinite().all()):
            break
    return u
