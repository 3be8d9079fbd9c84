"""Beam search on models that one can read or search through."""

from __future__ import annotations

import itertools

import pytest
import torch

from cmapkd_core.evaluate.caption_decoder import beam_search
from cmapkd_core.evaluate.caption_tokens import END, START

CPU = torch.device("cpu")


def toy(table):
    """Log-probabilities by the words so far; what the table does not name ends."""

    def next_word(tokens):
        rows = torch.full((len(tokens), 6), 1e-9)
        for row, said in zip(rows, tokens[:, 1:].tolist(), strict=True):
            for word, probability in table.get(tuple(said), {END: 1.0}).items():
                row[word] = probability
        return (rows / rows.sum(1, keepdim=True)).log()

    return next_word


def test_a_beam_finds_the_better_sequence_that_greedy_search_misses():
    a, b, c = 3, 4, 5
    # Greedy takes a (0.5) and then has no good way on; b (0.4) is followed by a certain c.
    model = toy({(): {a: 0.5, b: 0.4, c: 0.1}, (a,): {a: 0.3, b: 0.3, c: 0.4}, (b,): {c: 1.0}})
    greedy, beam = (beam_search(model, 1, beams, 4, CPU) for beams in (1, 2))
    assert greedy[0].tolist() == [[a, c, END, END]]
    assert beam[0].tolist() == [[b, c, END, END]]
    assert beam[1] > greedy[1]
    assert beam[1].exp().item() == pytest.approx(0.4 ** (1 / 3), rel=1e-5)


def random_model(inputs, beams, generator, vocabulary=5):
    """A model of one's own for each input, whose next word depends on the last two."""
    table = torch.randn(inputs, vocabulary, vocabulary, vocabulary, generator=generator).mul(2).log_softmax(-1)

    def next_word(tokens):
        owner = torch.arange(inputs).repeat_interleave(beams)
        before = tokens[:, -2] if tokens.shape[1] > 1 else tokens[:, -1]
        return table[owner, before, tokens[:, -1]]

    return next_word, table


def test_one_beam_is_greedy_search():
    next_word, _ = random_model(40, 1, torch.Generator().manual_seed(0))
    found, scores = beam_search(next_word, 40, 1, 7, CPU)
    tokens, total, count = torch.full((40, 1), START), torch.zeros(40), torch.zeros(40)
    ended = torch.zeros(40, dtype=torch.bool)
    for _ in range(7):
        value, word = next_word(tokens).max(dim=1)
        total, count = total + value * ~ended, count + ~ended
        word = word.where(~ended, END)
        tokens, ended = torch.cat((tokens, word[:, None]), 1), ended | (word == END)
    assert torch.equal(found, tokens[:, 1:])
    torch.testing.assert_close(scores, total / count)


def test_a_beam_that_holds_everything_finds_the_best_of_all_sequences():
    length, beams = 3, 125
    next_word, table = random_model(6, beams, torch.Generator().manual_seed(1))
    found, scores = beam_search(next_word, 6, beams, length, CPU)
    for i in range(6):
        best = (-torch.inf, [])
        for sequence in itertools.product(range(5), repeat=length):
            stop = sequence.index(END) + 1 if END in sequence else length
            before, last, total = START, START, 0.0
            for step, word in enumerate(sequence[:stop]):
                before, last, total = (last if step else START), word, total + table[i, before, last, word].item()
            best = max(best, (total / stop, [*sequence[:stop], *[END] * (length - stop)]))
        assert scores[i].item() == pytest.approx(best[0], abs=1e-5)
        assert found[i].tolist() == best[1]
