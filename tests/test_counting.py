"""Character counts as language models: laws, cases by hand, dictionaries, and the shipped text."""

from collections import defaultdict
from fractions import Fraction
from itertools import pairwise
from math import log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minibit.counting import CountModel, discounts, kneser_ney, witten_bell
from minibit.datasets import load_text

BOTH = pytest.mark.parametrize("make", [kneser_ney, witten_bell])
texts = st.text("abcd", min_size=1, max_size=60)
contexts = st.integers(0, 5)


def by_dictionaries(text, context, characters, kneser):
    """The textbook's sums in exact fractions: a function of a character and its history."""
    size = len(characters)
    counts = []  # of each order, {n-gram: count}
    for n in range(1, context + 2):
        grams = [text[i : i + n] for i in range(len(text) - n + 1)]
        longer = {text[i : i + n + 1] for i in range(len(text) - n)}
        occurrences = defaultdict(int)
        for gram in grams:
            occurrences[gram] += 1
        if kneser and n <= context and longer:
            occurrences = {gram: sum(other[1:] == gram for other in longer) for gram in occurrences}
        counts.append(dict(occurrences))

    def taken(order, count):
        n1, n2, n3, n4 = (sum(c == k for c in counts[order].values()) for k in (1, 2, 3, 4))
        discounts = [Fraction(1, 2), Fraction(1), Fraction(3, 2)]
        if n1 and n2 and n3 and n4:
            y = Fraction(n1, n1 + 2 * n2)
            ds = [1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3]
            if all(0 < d <= k for k, d in enumerate(ds, start=1)):
                discounts = ds
        return discounts[min(count, 3) - 1] if count else Fraction(0)

    def p(character, history):
        order = len(history)
        below = p(character, history[1:]) if history else Fraction(1, size)
        after = {g[-1]: c for g, c in counts[order].items() if g[:-1] == history}
        total, count = sum(after.values()), after.get(character, 0)
        if not total:
            return below
        if not kneser:
            return (count + len(after) * below) / Fraction(total + len(after))
        rest = sum(taken(order, c) for c in after.values())
        return (count - taken(order, count) + rest * below) / Fraction(total)

    return lambda character, history: p(character, history[max(len(history) - context, 0) :])


@BOTH
@given(text=texts, context=contexts, history=st.text("abcde", max_size=8))
def test_probabilities_are_positive_and_sum_to_one(make, text, context, history):
    """A distribution over the characters that may occur, after histories seen and unseen."""
    p = make(text, context, "abcde").probabilities(history)
    assert p.shape == (5,)
    assert (p > 0).all()
    assert abs(p.sum() - 1) < 1e-12


@BOTH
@given(text=texts, context=contexts, history=st.text("abcde", max_size=8))
def test_probabilities_are_those_of_the_textbook(make, text, context, history):
    """The packed integers give what dictionaries and exact fractions give."""
    expected = by_dictionaries(text, context, "abcde", make is kneser_ney)
    p = make(text, context, "abcde").probabilities(history)
    np.testing.assert_allclose(p, [float(expected(c, history)) for c in "abcde"], rtol=1e-12)


@BOTH
@given(text=texts, context=contexts, other=st.text("abcde", min_size=1, max_size=20))
def test_the_loss_is_the_mean_of_minus_log_p(make, text, context, other):
    """Each character is judged by those before it, as far back as the model looks."""
    expected = by_dictionaries(text, context, "abcde", make is kneser_ney)
    nats = [-log(expected(c, other[:i])) for i, c in enumerate(other)]
    assert make(text, context, "abcde").loss(other) == pytest.approx(np.mean(nats), rel=1e-12)


def test_witten_bell_by_hand():
    """``aab``: a 2 of 3, 2 kinds; after a: a once and b once; after b: nothing yet."""
    p = witten_bell("aab", 1)
    a, b = Fraction(2 + 1, 3 + 2), Fraction(1 + 1, 3 + 2)  # 2 kinds times 1/2
    np.testing.assert_allclose(p.probabilities(""), [float(a), float(b)])
    after_a = [(1 + 2 * a) / (2 + 2), (1 + 2 * b) / (2 + 2)]  # 11/20, 9/20
    np.testing.assert_allclose(p.probabilities("a"), [float(v) for v in after_a])
    np.testing.assert_allclose(p.probabilities("b"), [float(a), float(b)])


def test_kneser_ney_by_hand():
    """``abracadabra`` with discounts 1/2, 1, 3/2: r after ab has 111/140."""
    model = kneser_ney("abracadabra", 2)
    # Of the 7 different pairs 3 end in a (ra, ca, da), and one in each other character.
    a = Fraction(3, 7) - Fraction(3, 2) / 7 + Fraction(7, 2) / 7 / 5  # 11/35
    other = Fraction(1, 7) - Fraction(1, 2) / 7 + Fraction(7, 2) / 7 / 5  # 6/35
    np.testing.assert_allclose(model.probabilities(""), np.array([11, 6, 6, 6, 6]) / 35)
    # br has one character before it, abr occurs twice: half of what is left, twice.
    r = Fraction(1, 2) + (Fraction(1, 2) + other / 2) / 2
    expected = [a / 4, other / 4, other / 4, other / 4, r]
    assert sum(expected) == 1
    assert r == Fraction(111, 140)
    np.testing.assert_allclose(model.probabilities("ab"), [float(v) for v in expected])


def test_shorter_histories_count_what_stood_before_not_how_often():
    """The law that names Kneser-Ney: q is frequent after one character only, x after many."""
    text = "zq" * 40 + "axbxcxdx"
    frequent = dict(zip("abcdqxz", kneser_ney(text, 0).probabilities(""), strict=True))
    varied = dict(zip("abcdqxz", kneser_ney(text, 1).probabilities(""), strict=True))
    assert frequent["q"] > 5 * frequent["x"]
    assert varied["x"] > 2 * varied["q"]


def test_an_unseen_history_is_shortened():
    """Rest 1: the longest suffix that was seen decides, and the empty one at last."""
    model = kneser_ney("the cat sat on the mat", 3)
    np.testing.assert_array_equal(model.probabilities("nat"), model.probabilities("at"))
    np.testing.assert_array_equal(model.probabilities("cmt"), model.probabilities("t"))
    np.testing.assert_array_equal(model.probabilities("at a the"), model.probabilities("the"))


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([1] * 8 + [2] * 4 + [3] * 2 + [4], (0, 1 / 2, 5 / 4, 2)),  # Y = 1/2
        ([1] * 6 + [2] * 3 + [3] + [4] + [9] * 5, (0, 1 / 2, 3 / 2, 1)),
        ([1] * 8 + [2] * 4 + [3] * 2, (0, 1 / 2, 1, 3 / 2)),  # n4 = 0
        ([1] * 8 + [2] + [3] * 9 + [4], (0, 1 / 2, 1, 3 / 2)),  # D2 would be -19.6
        ([1] * 8 + [2] * 4 + [3] + [4] * 9, (0, 1 / 2, 1, 3 / 2)),  # D3 would be -15
        ([1] * 4 + [2] * 4 + [3] * 8 + [4], (0, 1 / 2, 1, 3 / 2)),  # D2 would be 0
        ([], (0, 1 / 2, 1, 3 / 2)),
    ],
)
def test_discounts_come_from_counts_of_counts(counts, expected):
    """D1 = 1 - 2 Y n2/n1 and its sisters; the fallback where these are no discounts."""
    np.testing.assert_allclose(discounts(np.array(counts, np.int64)), expected, rtol=1e-12)


@BOTH
def test_characters_that_never_occurred_share_what_is_left(make):
    """All unseen ones are as likely as each other, and none is impossible."""
    model = make("banana", 2, "abnxyz")
    assert model.characters == "abnxyz"
    p = model.probabilities("an")
    assert p[3] == p[4] == p[5] > 0
    assert np.isfinite(model.loss("xyz"))


@BOTH
def test_a_context_longer_than_the_text_is_the_longest_there_is(make):
    """No n-gram is longer than the text; nothing beyond changes anything."""
    long, short = make("abac", 50), make("abac", 4)
    assert long.loss("bacabac") == short.loss("bacabac")


@BOTH
def test_long_contexts_do_not_overflow(make):
    """Ids keep the integers small: 200 characters of 4 kinds would need 400 bits."""
    text = "".join(np.random.default_rng(0).choice(list("abcd"), 1000))
    model = make(text, 200)
    assert model.loss(text) < 0.5 < 1 < make(text, 0).loss(text)


def test_characters_beyond_ascii_are_counted_as_characters():
    """One code point is one character, however many bytes it takes."""
    model = witten_bell("naïve 𝔸\ud800", 1)
    assert len(model.characters) == 8
    assert model.probabilities("ï").argmax() == model.characters.index("v")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kneser_ney("", 2), "text must not be empty"),
        (lambda: witten_bell("ab", -1), "context must be at least 0, got -1"),
        (lambda: witten_bell("ab", 1, "a"), "characters lacks 'b'"),
        (lambda: witten_bell("ab", 1, ""), "characters lacks 'a'"),
        (lambda: witten_bell("ab", 1, ["a", "b", "the"]), "must be single ones, got 'the'"),
        (lambda: kneser_ney("ab", 1).loss(""), "text must not be empty"),
        (lambda: kneser_ney("ab", 1).loss("abc"), "text holds 'c' at 2"),
        (lambda: kneser_ney("ab", 1).probabilities("xa"), "history holds 'x' at 0"),
    ],
)
def test_bad_input_is_named(call, message):
    """A ValueError says what was wrong, and where."""
    with pytest.raises(ValueError, match=message):
        call()


def test_a_context_is_an_integer():
    """Half a character of history is no history."""
    with pytest.raises(TypeError):
        kneser_ney("ab", 1.5)


def test_a_model_is_frozen():
    """Nobody changes what a model says of itself."""
    model = kneser_ney("ab", 1)
    assert isinstance(model, CountModel)
    with pytest.raises(AttributeError):
        model.context = 3


@pytest.mark.parametrize(
    ("make", "published"),
    [
        (kneser_ney, (2.537, 2.042, 1.744, 1.611, 1.565)),
        (witten_bell, (2.539, 2.061, 1.796, 1.715, 1.744)),
    ],
)
def test_the_shipped_text_has_these_losses(make, published):
    """Its last tenth, by 1 to 5 characters of context; a separate implementation found the same."""
    text = load_text()
    cut = len(text) * 9 // 10
    losses = [make(text[:cut], context, text).loss(text[cut:]) for context in range(1, 6)]
    np.testing.assert_allclose(losses, published, atol=0.0006)
    if make is kneser_ney:  # longer histories never hurt it; Witten-Bell trusts them too much
        assert all(longer < shorter for shorter, longer in pairwise(losses))
