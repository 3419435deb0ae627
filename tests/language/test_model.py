"""Language models on texts whose perplexity is known."""

import math

import pytest
import torch
from regularisers import Width

from otdml.language import TiedLanguageModel, Training, training
from otdml.losses import KoLeo
from otdml.losses.dispersion import nearest_angles

SMALL = {"width": 16, "layers": 1, "heads": 2, "context": 8}


def model(seed=0, vocabulary=5, dim=4):
    return TiedLanguageModel(vocabulary, dim, seed=seed, **SMALL)


def trained(how, seed=0, tokens=None):
    found = model(seed)
    text = torch.arange(200) % 5 if tokens is None else tokens
    steps = list(training(found, text, how, torch.Generator().manual_seed(seed)))
    assert steps == list(range(1, how.steps + 1))
    return found


def test_no_token_sees_those_after_it():
    tokens = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2]])
    changed = tokens.clone()
    changed[0, 5:] = 3
    found = model().eval()
    torch.testing.assert_close(found(tokens)[:, :5], found(changed)[:, :5])
    assert not torch.allclose(found(tokens)[:, 5:], found(changed)[:, 5:])


def test_a_text_that_repeats_is_learnt():
    found = trained(Training(steps=150, batch=8, rate=1e-2))
    assert found.perplexity(torch.arange(81) % 5) < 1.05


def test_independent_tokens_have_the_perplexity_of_their_entropy():
    """Half of the tokens are one, and four are an eighth each: 2 bits, a perplexity of 4."""
    text = torch.tensor([0, 0, 0, 0, 1, 2, 3, 4])[torch.randint(8, (9000,), generator=torch.Generator().manual_seed(1))]
    found = trained(Training(steps=300, batch=32, rate=1e-2), tokens=text[:8000])
    assert found.perplexity(text[8000:]) == pytest.approx(4, abs=0.3)


def test_perplexity_is_the_exponential_of_the_mean_loss_whatever_the_parts():
    found, text = model(), torch.randint(5, (8 * 70 + 1,), generator=torch.Generator().manual_seed(0))
    rows = torch.stack([text[i : i + 9] for i in range(0, 8 * 70, 8)])
    assert found.perplexity(text) == pytest.approx(math.exp(float(found.loss(rows).detach())), rel=1e-5)
    assert found.training


def test_vectors_are_of_input_and_output():
    found = model()
    found(torch.tensor([[0, 1]]))[0, -1, 4].backward()
    # Token 4 is not read, and its logit is a scalar product with its vector; tokens 0 and 1 are read.
    assert bool((found.table.grad.norm(dim=1) > 0)[[0, 1, 4]].all())
    assert not found.table.grad[[2, 3]].any()


def test_a_regulariser_parts_the_vectors_and_decay_shortens_them():
    plain = trained(Training(steps=30))
    parted = trained(Training(KoLeo(), 10.0, steps=30, rate=1e-2))
    rows = trained(Training(KoLeo(), 10.0, rows=3, steps=30, rate=1e-2))
    short = trained(Training(decay=50.0, steps=30))
    angle = float(nearest_angles(plain.table.detach()).mean())
    assert float(nearest_angles(parted.table.detach()).mean()) > angle + 5
    assert float(nearest_angles(rows.table.detach()).mean()) > angle + 2
    assert float(short.table.detach().norm()) < 0.3 * float(plain.table.detach().norm())


def test_parameters_of_a_regulariser_are_learnt():
    """Adam's first step has the length of the rate, here towards a sum of squares above one."""
    regulariser = Width()
    trained(Training(regulariser, steps=1, rate=1e-2))
    assert float(regulariser.width.detach()) == pytest.approx(1 + 1e-2, abs=1e-6)


def test_seeds_decide_and_a_regulariser_of_no_weight_changes_nothing():
    how = Training(steps=3)
    first = trained(how).state_dict()
    for again in (trained(how), trained(Training(KoLeo(), 0.0, rows=3, steps=3))):
        assert all(torch.equal(first[name], value) for name, value in again.state_dict().items())
    assert not torch.equal(first["table"], trained(how, seed=1).state_dict()["table"])
    assert not torch.equal(first["table"], trained(Training(KoLeo(), steps=3)).state_dict()["table"])


def test_perplexity_of_half_precision_is_that_of_its_logits():
    tokens = torch.randint(50, (2000,), generator=torch.Generator().manual_seed(0))
    model = TiedLanguageModel(50, 8, seed=0, width=16, layers=1, context=16).eval()
    half = model.to(torch.bfloat16)
    rows = tokens.unfold(0, 17, 16)
    with torch.no_grad():
        logits = half(rows[:, :-1]).double()
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten()).exp()
    assert half.perplexity(tokens) == pytest.approx(float(expected), rel=1e-5)


def test_sequences_are_of_the_vocabulary_and_no_longer_than_the_context():
    model = TiedLanguageModel(5, 2, seed=0, width=4, layers=1, heads=1, context=4)
    for tokens, message in (
        (torch.tensor([[0, -1]]), r"`tokens` must lie in \[0, 5\)"),
        (torch.tensor([[0, 5]]), r"`tokens` must lie in \[0, 5\)"),
        (torch.zeros(1, 5).long(), "`tokens` must have shape .* length of 1 to 4"),
        (torch.zeros(1, 0).long(), "`tokens` must have shape"),
        (torch.zeros(4).long(), "`tokens` must have shape"),
        (torch.zeros(1, 4), "`tokens` must be a tensor of integers"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            model(tokens)
    with pytest.raises(ValueError, match="`tokens` must have shape"):
        model.loss(torch.zeros(2, 1).long())
    assert torch.equal(model(torch.tensor([[1, 2]], dtype=torch.uint8)), model(torch.tensor([[1, 2]])))


@pytest.mark.parametrize("kind", [torch.uint8, torch.int32, torch.int64])
def test_the_loss_is_the_same_whatever_integers_tokens_are(kind):
    found, tokens = model(), torch.tensor([[0, 1, 2], [4, 4, 3]])
    logits = found(tokens[:, :-1])
    expected = -logits.log_softmax(-1).gather(-1, tokens[:, 1:, None]).mean()
    torch.testing.assert_close(found.loss(tokens.to(kind)), expected)
    torch.testing.assert_close(found.loss(tokens.to(kind).numpy()), expected)


def test_the_loss_is_of_tokens_of_the_vocabulary():
    """The last token of a sequence is not read, and -100 was left out of the mean."""
    for last in (-100, 5):
        with pytest.raises(ValueError, match=r"`tokens` must lie in \[0, 5\)"):
            model().loss(torch.tensor([[0, 1, 2], [0, 1, last]]))
    for tokens in (torch.tensor([0, 1]), torch.tensor([[0]]), torch.zeros(0, 3, dtype=torch.long)):
        with pytest.raises(ValueError, match=r"have shape \(n, length\) with n >= 1 and a length of 2 to 9"):
            model().loss(tokens)


def test_a_perplexity_beyond_all_numbers_is_infinite():
    found = model()
    with torch.no_grad():
        found.bias[0] = 1000.0
    assert found.perplexity(torch.ones(20, dtype=torch.long)) == math.inf
