"""One contract of all functions that take images or rows with labels: what they cannot mean is refused by name."""

import math

import pytest
import torch

from otdml.contrast import Encoder, Pairs, Views, corrupted, linear_probe, neighbours, spoiled
from otdml.contrast import training as contrasted
from otdml.disentanglement import Autoencoder, Objective, Schedule, coarse, fit, total_correlation
from otdml.disentanglement import training as fitted
from otdml.dml.prototypes import PrototypeClassifier, Training, training
from otdml.language import TiedLanguageModel
from otdml.language import Training as Reading
from otdml.language import training as read
from otdml.losses import InfoNCE


def generator():
    return torch.Generator().manual_seed(0)


def classify(images):
    model = PrototypeClassifier(3, 2, seed=0, size=16, widths=(2, 2))
    list(training(model, images, torch.arange(len(images)) % 3, Training(steps=1, batch=2), generator()))


def accuracy(images):
    model = PrototypeClassifier(3, 2, seed=0, size=16, widths=(2, 2))
    return model.accuracy(images, torch.arange(len(images)) % 3)


def contrast(images):
    encoder, options = Encoder(seed=0, widths=(2,), dim=2), {"steps": 1, "batch": 2, "rate": 0.1}
    list(contrasted(encoder, images, InfoNCE(), Pairs(), **options, generator=generator()))


def autoencode(images):
    model = Autoencoder(size=16, width=2, channels=3, codes=2)
    list(fitted(model, images, Objective(), Schedule(1, 2), generator()))


# The function, its channels (None: any), whether it takes bytes, and whether it looks at the values.
TAKERS = {
    "Autoencoder": (lambda x: Autoencoder(size=16, width=2, channels=3, codes=2)(x), 3, False, False),
    "disentanglement.fit": (lambda x: fit(x, schedule=Schedule(1, 2)), None, True, True),
    "disentanglement.training": (autoencode, 3, True, True),
    "corrupted": (lambda x: corrupted(x, "blur", generator()), None, False, True),
    "Views": (lambda x: Views()(x, generator()), 3, False, True),
    "spoiled": (lambda x: spoiled(x, "wrong", 0.5, generator()), None, False, False),
    "Encoder": (lambda x: Encoder(seed=0, widths=(2,), dim=2)(x), 3, False, False),
    "Encoder.features": (lambda x: Encoder(seed=0, widths=(2,), dim=2).features(x), 3, True, True),
    "contrast.training": (contrast, 3, True, True),
    "PrototypeClassifier": (lambda x: PrototypeClassifier(3, 2, seed=0, size=16, widths=(2, 2))(x), 1, False, False),
    "PrototypeClassifier.accuracy": (accuracy, 1, True, True),
    "prototypes.training": (classify, 1, True, True),
}


@pytest.fixture(params=TAKERS.values(), ids=TAKERS.keys())
def taker(request):
    return request.param


def images(channels, n=4):
    return torch.rand(n, channels or 3, 16, 16, generator=generator())


def test_images_are_taken_and_bytes_where_they_are_stored(taker):
    function, channels, stored, _ = taker
    function(images(channels))
    pixels = (255 * images(channels)).byte()
    if stored:
        function(pixels)
        return
    with pytest.raises(TypeError, match=r"must be of floating point, got bytes. Write `\w+.float\(\) / 255`"):
        function(pixels)


def test_other_shapes_are_refused(taker):
    function, channels, *_ = taker
    for wrong in (images(channels)[0], images(channels)[:0], images(channels)[..., :0]):
        with pytest.raises(
            ValueError, match=r"must have shape \(n, (channels|\d), (h|16), (w|16)\), none of them 0, got"
        ):
            function(wrong)
    if channels is not None:
        with pytest.raises(ValueError, match=rf"must have shape \(n, {channels}, "):
            function(images(channels + 1))


def test_what_is_no_tensor_or_holds_integers_is_refused(taker):
    function, channels, *_ = taker
    for wrong in (images(channels).numpy(), images(channels).long()):
        with pytest.raises(TypeError, match=r"must be a torch\.Tensor of images|must be of floating point"):
            function(wrong)


def test_pixels_beyond_one_and_nan_are_refused(taker):
    function, channels, _, looks = taker
    if not looks:
        return
    for factor, message in (
        (255, "got numbers from .* Divide by their largest value"),
        (math.nan, "got numbers from nan"),
    ):
        with pytest.raises(ValueError, match=rf"must lie in \[0, 1\], {message}"):
            function(images(channels) * factor)


def test_sides_are_even_where_squares_of_four_are_taken():
    for function in (lambda x: corrupted(x, "pixels", generator()), Encoder(seed=0, widths=(2,), dim=2)):
        with pytest.raises(ValueError, match="`images` must have an even height and width"):
            function(torch.rand(2, 3, 16, 15))


ROWS, LABELS = torch.randn(50, 4, generator=generator()), torch.arange(50) % 3


@pytest.mark.parametrize("judge", [linear_probe, neighbours])
def test_judges_name_what_cannot_be_judged(judge):
    if judge is linear_probe:
        pytest.importorskip("sklearn")
    test = ROWS[:20], LABELS[:20]
    for rows, labels, message in (
        (ROWS, LABELS[:40], "`labels` must have shape"),
        (ROWS, LABELS.float(), "`labels` must be a tensor of integers"),
        (ROWS * math.nan, LABELS, "`z` must be finite"),
        (ROWS[:, :3], LABELS, "`test_z` must have as many features as `z`, 3, got 4"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            judge(rows, labels, *test)
    expected = judge(ROWS, LABELS, *test)
    assert judge(ROWS.clone().requires_grad_(), LABELS, *test) == expected
    # Classes are names, and any integer is one.
    assert judge(ROWS, 10 * LABELS - 7, test[0], 10 * test[1] - 7) == expected
    coarse_rows, coarse_test = ROWS.half(), test[0].half()
    found = judge(coarse_rows, LABELS, coarse_test, test[1])
    assert found == judge(coarse_rows.float(), LABELS, coarse_test.float(), test[1])


def test_neighbours_are_among_the_training_rows():
    with pytest.raises(ValueError, match="`k` must be at most the number of training rows, 50, got 51"):
        neighbours(ROWS, LABELS, ROWS, LABELS, k=51)


def test_a_probe_of_one_class_is_refused():
    with pytest.raises(ValueError, match="`labels` must be of two classes or more"):
        linear_probe(ROWS, 0 * LABELS, ROWS, LABELS)


def test_features_have_the_classifier_s_number_and_labels_its_classes():
    model = PrototypeClassifier(3, 2, seed=0, features=5)
    for rows, labels, message in (
        (ROWS, LABELS, r"`images` must have shape \(n, 5\), a row of features each, got \(50, 4\)"),
        (torch.zeros(50, 5), LABELS + 1, r"`labels` must lie in \[0, 3\)"),
        (torch.zeros(50, 5), LABELS[:4], r"`labels` must have shape \(50,\)"),
        (torch.zeros(50, 5) * math.nan, LABELS, "`images` must be finite"),
    ):
        with pytest.raises(ValueError, match=message):
            model.accuracy(rows, labels)
        with pytest.raises(ValueError, match=message):
            training(model, rows, labels, Training(steps=1), generator())
    with pytest.raises(ValueError, match="`images` must have shape"):
        model(ROWS)


def test_pictures_have_the_classifier_s_sides():
    model = PrototypeClassifier(3, 2, seed=0, size=16, widths=(2, 2))
    with pytest.raises(ValueError, match=r"`images` must have shape \(n, 1, 16, 16\), none of them 0"):
        model(torch.rand(2, 1, 17, 17))


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"batch": 0}, {"rate": math.nan}, {"rows": 0}, {"weight": -1.0}, {"decay": "1"}]
)
@pytest.mark.parametrize("kind", [Training, Reading])
def test_a_schedule_that_cannot_be_run_is_refused(kind, wrong):
    with pytest.raises((ValueError, TypeError), match=f"`{next(iter(wrong))}` must be"):
        kind(**wrong)


@pytest.mark.parametrize(
    "wrong", [{"classes": 0}, {"dim": 0}, {"seed": "a"}, {"scale": -1.0}, {"features": 0}, {"size": 0}]
)
def test_a_classifier_that_cannot_be_is_refused(wrong):
    with pytest.raises((ValueError, TypeError), match=f"`{next(iter(wrong))}` must be"):
        PrototypeClassifier(**{"classes": 3, "dim": 2, "seed": 0} | wrong)


def test_texts_are_of_the_vocabulary_and_long_enough():
    model = TiedLanguageModel(5, 2, seed=0, width=4, layers=1, heads=1, context=8)
    for tokens, message in (
        (torch.arange(20), r"`tokens` must lie in \[0, 5\), got values from 0 to 19"),
        (torch.arange(5), r"`tokens` must be a text of more than 8 tokens, shape \(n,\), got \(5,\)"),
        (torch.zeros(3, 20).long(), "`tokens` must be a text"),
        (torch.zeros(20), "`tokens` must be a tensor of integers"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            model.perplexity(tokens)
        with pytest.raises((ValueError, TypeError), match=message):
            read(model, tokens, Reading(steps=1), generator())


def test_ranges_are_of_indices_below_their_counts():
    factors, counts = torch.tensor([[2, 5, 39]]), torch.tensor([3, 6, 40])
    assert coarse(factors.numpy(), counts.numpy()).tolist() == [[2, 5, 7]]
    for wrong, message in (
        (factors + torch.tensor([0, 1, 0]), "indices below their counts, 6 there, got 6 to 6 in column 1"),
        (-factors, "got -2 to -2 in column 0"),
        (factors.float(), "a tensor of integers"),
        (factors[:, :2], r"have shape \(n, 3\)"),
    ):
        with pytest.raises((ValueError, TypeError), match=f"`factors` must be.*{message}|`factors` must {message}"):
            coarse(wrong, counts)
    with pytest.raises(ValueError, match="`counts` must be a vector of positive integers"):
        coarse(factors, 0 * counts)


def test_total_correlation_takes_three_matrices_of_one_shape():
    z = torch.randn(6, 3, generator=generator())
    with pytest.raises(ValueError, match=r"`log_variance` must have the shape of `codes`, \(6, 3\), got \(6, 2\)"):
        total_correlation(z, z, z[:, :2])
    with pytest.raises(ValueError, match="`mean` must have the shape of `codes`"):
        total_correlation(z, z[:2], z[:2])
    with pytest.raises(ValueError, match="`codes` must have shape"):
        total_correlation(z[None], z, z)
    with pytest.raises(TypeError, match=r"`mean` must be a torch\.Tensor, got list"):
        total_correlation(z, z.tolist(), z)
    assert abs(total_correlation(z.double(), 0 * z.double(), 0 * z.double())) < 1e-15
    half = total_correlation(z.half(), z.half(), z.half())
    assert half.dtype == torch.float32
    assert torch.equal(half, total_correlation(*[z.half().float()] * 3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_images_of_any_precision_train_a_network_of_single_precision(dtype):
    images, labels = torch.rand(6, 3, 16, 16).to(dtype), torch.arange(6) % 3
    grey = images[:, :1]
    model = PrototypeClassifier(3, 2, seed=0, size=16, widths=(2, 2))
    list(training(model, grey, labels, Training(steps=1, batch=4), generator()))
    model.accuracy(grey, labels)
    encoder = Encoder(seed=0, widths=(2,), dim=2)
    list(contrasted(encoder, images, InfoNCE(), Pairs(), steps=1, batch=4, rate=0.1, generator=generator()))
    assert encoder.features(images).dtype == torch.float32
    autoencoder = Autoencoder(size=16, width=2, channels=3, codes=2)
    list(fitted(autoencoder, images, Objective(), Schedule(1, 2), generator()))
    for one in (model, encoder, autoencoder):
        assert next(one.parameters()).dtype == torch.float32


def test_training_is_in_training_mode_and_needs_a_generator():
    images, labels = torch.rand(6, 3, 16, 16), torch.arange(6) % 3
    model, encoder = PrototypeClassifier(3, 2, seed=0, size=16, widths=(2, 2)), Encoder(seed=0, widths=(2,), dim=2)
    autoencoder = Autoencoder(size=16, width=2, channels=3, codes=2)
    words = TiedLanguageModel(5, 2, seed=0, width=4, layers=1, heads=1, context=4)

    def trainings(generator):
        options = {"steps": 1, "batch": 4, "rate": 0.1, "generator": generator}
        yield model, lambda: training(model, images[:, :1], labels, Training(steps=1, batch=4), generator)
        yield encoder, lambda: contrasted(encoder, images, InfoNCE(), Pairs(), **options)
        yield autoencoder, lambda: fitted(autoencoder, images, Objective(), Schedule(1, 2), generator)
        yield words, lambda: read(words, torch.arange(20) % 5, Reading(steps=1), generator)

    for one, start in trainings(generator()):
        one.eval()
        list(start())
        assert one.training
    for _, start in trainings(None):
        with pytest.raises(TypeError, match=r"`generator` must be a torch\.Generator, got None"):
            list(start())


def test_rows_of_a_regulariser_leave_the_batches_as_they_are():
    images, labels = torch.rand(6, 1, 16, 16), torch.arange(6) % 3

    def trained(**how):
        model = PrototypeClassifier(3, 2, seed=0, size=16, widths=(2, 2))
        list(training(model, images, labels, Training(steps=3, batch=4, **how), generator()))
        return model.prototypes.detach()

    nothing = trained()
    assert torch.equal(nothing, trained(regulariser=lambda rows: 0 * rows.sum(), weight=1.0))
    assert torch.equal(nothing, trained(regulariser=lambda rows: 0 * rows.sum(), weight=1.0, rows=2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Training(regulariser="koleo"), "`regulariser` must be a function or None"),
        (lambda: Reading(regulariser="koleo"), "`regulariser` must be a function or None"),
        (lambda: Training(distort=3), "`distort` must be a function or None"),
        (lambda: Objective(regularizer="gap"), "`regularizer` must be a function or None"),
        (lambda: Pairs(views="x"), "`views` must be a function"),
        (lambda: Training(batch=1), "`batch` must be"),
        (lambda: Encoder(seed=0, widths=()), "`widths` must be one or more"),
        (lambda: PrototypeClassifier(5, 3, seed=0, size=4), "`size` must be 8 or more"),
    ],
)
def test_options_that_cannot_work_are_refused_at_once(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def test_domains_are_one_for_each_picture():
    options = {"steps": 1, "batch": 2, "rate": 0.1, "generator": generator()}
    with pytest.raises(ValueError, match=r"`domains` must have shape \(4,\)"):
        contrasted(
            Encoder(seed=0, widths=(2,), dim=2),
            torch.rand(4, 3, 8, 8),
            InfoNCE(),
            Pairs(),
            domains=torch.arange(2),
            **options,
        )
