"""Network, training batches, training, fine-tuning and novelty, on small made images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest

from fmnist_tasks.data.dataset import Arrays
from fmnist_tasks.data.shards import Training
from fmnist_tasks.errors import TrainingError
from fmnist_tasks.model import h5, novelty, training, tuning
from fmnist_tasks.model.batches import augmented, mixed, training_batches
from fmnist_tasks.model.cnn import build, first_convolution, published, trained
from fmnist_tasks.model.fakes import fake_images
from fmnist_tasks.model.normalisation import FusedBatchNormalization
from fmnist_tasks.model.temperature import best_temperature
from fmnist_tasks.model.whitening import whitened
from fmnist_tasks.registry.checkpoints import Checkpoints
from fmnist_tasks.registry.local import FolderStore
from fmnist_tasks.settings import PROFILES, Profile
from tests.support import synthetic

STAGE = replace(PROFILES["quick"].base, epochs=2, batch_size=32)
PROFILE = replace(PROFILES["quick"], base=STAGE, tuning=replace(PROFILES["quick"].tuning, epochs=1, batch_size=32))


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(FolderStore(tmp_path), "run", "base-0", {})


def small(count: int = 320) -> Arrays:
    images, labels = synthetic.make_images(count, 1)
    held = synthetic.make_images(100, 2)
    return Arrays(Training.of(images, labels), *held, *held)


def candidate(network: keras.Model, arrays: Arrays, temperature: float = 1.0) -> keras.Model:
    classifier = published(PROFILE, 10, trained(PROFILE, 10, network), temperature)
    return novelty.publishable(classifier, arrays.training)


def base(**changed: object) -> Profile:
    return replace(PROFILE, base=replace(STAGE, **changed))


@pytest.mark.parametrize("name", PROFILES)
def test_the_network_is_what_the_design_says(name: str) -> None:
    model = build(PROFILES[name], 10)
    kinds = [type(layer).__name__ for layer in model.layers]
    assert kinds[:2] == ["InputLayer", "Rescaling"]
    assert {"Conv2D", "MaxPooling2D", "Dropout"} <= set(kinds)
    assert kinds[-1] == "Dense"
    assert model.layers[1].scale == pytest.approx(1 / 255)
    assert all(variable.dtype == "float32" for variable in model.weights)
    again = build(PROFILES[name], 10)
    assert [layer.name for layer in model.layers] == [layer.name for layer in again.layers]


@pytest.mark.parametrize("name", PROFILES)
def test_the_published_form_of_every_profile_keeps_the_answers(name: str) -> None:
    keras.utils.set_random_seed(0)
    network, random = build(PROFILES[name], 10), np.random.default_rng(0)
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([random.uniform(0.5, 2, weight.shape) for weight in layer.get_weights()])
    classifier, (images, _) = trained(PROFILES[name], 10, network), synthetic.make_images(20, 1)
    answers = np.log(h5.classify(published(PROFILES[name], 10, classifier, temperature=1.0), images))
    np.testing.assert_allclose(answers, np.log(h5.classify(classifier, images)), atol=1e-3)
    assert np.ptp(answers, axis=0).max() > 1  # they are not all alike


def test_an_image_and_its_mirror_image_get_the_same_answer() -> None:
    images, _ = synthetic.make_images(50, 1)
    classifier = trained(PROFILE, 10, build(PROFILE, 10))
    forth, back = h5.classify(classifier, images), h5.classify(classifier, images[:, :, ::-1])
    np.testing.assert_allclose(forth, back, atol=1e-6)
    assert np.ptp(forth, axis=0).max() > 0.01  # the answers are not all alike


def test_fused_normalisation_equals_the_built_in_layer() -> None:
    x = np.random.default_rng(0).normal(3, 2, (64, 7, 7, 8)).astype(np.float32)
    fused, plain = FusedBatchNormalization(scale=False), keras.layers.BatchNormalization(scale=False)
    for layer in (fused, plain):
        layer.build(x.shape)
    np.testing.assert_allclose(fused(x, training=True), plain(x, training=True), rtol=1e-4, atol=1e-4)
    for a, b in zip(fused.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3)  # the fused variance divides by N - 1
    np.testing.assert_allclose(fused(x), plain(x), rtol=1e-2, atol=1e-2)


def test_augmentation_moves_and_mirrors_but_invents_nothing() -> None:
    image = np.zeros((28, 28), np.uint8)
    image[10:14, 5:8] = 200
    batch = np.broadcast_to(image, (400, 28, 28)).copy()
    out = augmented(batch, replace(STAGE, shift=1), np.random.default_rng(0))
    variants = {picture.tobytes() for picture in out}
    expected = {
        np.roll(base, (down, right), (0, 1)).tobytes()
        for base in (image, image[:, ::-1])
        for down in (-1, 0, 1)
        for right in (-1, 0, 1)
    }
    assert variants == expected


def test_cut_mix_takes_a_square_of_the_image_before_and_its_part_of_the_target() -> None:
    count = 2_000
    images = np.broadcast_to(np.arange(count)[:, None, None] % 10, (count, 28, 28)).astype(np.uint8)
    targets = np.eye(10, dtype=np.float32)[images[:, 0, 0]]
    out, shown = mixed(images, targets, 0.5, np.random.default_rng(0))
    for number in range(count):
        other = out[number] != number % 10
        assert set(out[number][other]) <= {(number - 1) % 10}
        expected = np.zeros(10)
        expected[number % 10], expected[(number - 1) % 10] = 1 - other.mean(), other.mean()
        np.testing.assert_allclose(shown[number], expected, atol=1e-6)
        rows, columns = np.flatnonzero(other.any(axis=1)), np.flatnonzero(other.any(axis=0))
        assert other.sum() == len(rows) * len(columns)  # one rectangle, without holes
        if len(rows):
            assert np.ptp(rows) + 1 == len(rows)
    touched = (out != images).any(axis=(1, 2)).mean()
    assert 0.45 < touched < 0.55
    assert mixed(images, targets, 0.0, np.random.default_rng(0)) == (images, targets)


def test_every_epoch_has_every_image_once_in_a_new_order() -> None:
    images, labels = synthetic.make_images(325, 1)

    def epoch(number: int) -> list[np.ndarray]:
        batches = training_batches(Training.of(images, labels), STAGE, classes=10, seed=0, epoch=number)
        return [np.concatenate(arrays) for arrays in zip(*batches, strict=True)]

    first, second = epoch(0), epoch(1)
    assert all((one == again).all() for one, again in zip(first, epoch(0), strict=True))
    assert first[0].shape == (320, 28, 28, 1)
    assert (first[1] != second[1]).any()
    known = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
    known |= {image[:, ::-1].tobytes(): label for image, label in zip(images, labels, strict=True)}
    for variants, targets in (first, second):
        assert (targets == np.eye(10)[[known[variant.tobytes()] for variant in variants]]).all()
        assert len({min(v.tobytes(), v[:, ::-1].tobytes()) for v in variants}) == 320


@pytest.mark.integration
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path: Path) -> None:
    arrays = small()
    stores = [Checkpoints(FolderStore(tmp_path / name), "run", "base", {}) for name in "abc"]
    fits = [training.train(arrays, 10, PROFILE, seed, kept) for seed, kept in zip((3, 3, 4), stores, strict=True)]
    first, second, other = ([weight.tobytes() for weight in fit.model.get_weights()] for fit in fits)
    assert first == second
    assert first != other
    models = [candidate(fit.model, arrays) for fit in fits[:2]]
    assert h5.save(models[0]) == h5.save(models[1])


@pytest.mark.integration
def test_the_first_convolution_begins_at_whitening_filters(checkpoints: Checkpoints) -> None:
    arrays = small()
    motionless = training.train(arrays, 10, base(epochs=1, learning_rate=0.0), 0, checkpoints).model
    (kernel,) = first_convolution(motionless).get_weights()
    np.testing.assert_array_equal(kernel, whitened(kernel, arrays.training))


@pytest.mark.integration
def test_smoothed_labels_make_answers_less_sure_and_figures_no_different(tmp_path: Path) -> None:
    def fitted(**changed: object) -> training.Fit:
        kept = Checkpoints(FolderStore(tmp_path / repr(changed)), "run", "base", {})
        return training.train(small(), 10, base(**changed), 0, kept)

    plain, smoothed = (fitted(epochs=1, learning_rate=0.0, smoothing=share).curves["loss"] for share in (0.0, 0.5))
    assert plain == smoothed
    surest = []
    for share in (0.0, 0.5):
        model = trained(PROFILE, 10, fitted(epochs=8, smoothing=share).model)
        surest.append(np.median(h5.classify(model, small().validation_images).max(axis=1)))
    assert surest[0] > 0.9
    assert surest[1] == pytest.approx(0.55, abs=0.1)  # what such labels say: 0.5 + 0.5 / 10


@pytest.mark.integration
def test_training_learns_and_reports_every_epoch(checkpoints: Checkpoints, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    fit = training.train(small(), 10, base(epochs=4), 0, checkpoints)
    assert fit.curves["val_accuracy"][fit.best_epoch - 1] > 0.9
    assert {len(values) for values in fit.curves.values()} == {4}
    assert caplog.text.count("validation accuracy") == 4
    assert "epoch 4/4" in caplog.text


@pytest.mark.integration
def test_early_stopping_restores_the_best_epoch(checkpoints: Checkpoints) -> None:
    arrays = small()
    shuffled = replace(arrays, validation_labels=np.random.default_rng(0).permutation(arrays.validation_labels))
    fit = training.train(shuffled, 10, base(epochs=30, patience=2), 0, checkpoints)
    losses = fit.curves["val_loss"]
    assert len(losses) == fit.best_epoch + 2 < 30
    logits = fit.model.predict(arrays.validation_images[..., None].astype(np.float32), verbose=0)
    _, again = best_temperature(shuffled.validation_labels, keras.ops.softmax(logits).numpy())
    assert again == pytest.approx(min(losses), rel=1e-3)


@pytest.mark.integration
def test_a_loss_that_is_no_number_stops_training_at_once(checkpoints: Checkpoints) -> None:
    with pytest.raises(
        TrainingError, match=r"loss is (nan|inf) at step \d+ of epoch 1; training stopped, nothing was kept"
    ):
        training.train(small(), 10, base(learning_rate=float("inf")), 0, checkpoints)


@pytest.mark.integration
def test_weights_that_the_last_step_of_all_spoils_stop_training_too(checkpoints: Checkpoints) -> None:
    only_step = base(epochs=1, learning_rate=float("inf"))  # its own loss is that of the weights before it
    with pytest.raises(TrainingError, match=r"loss is nan on the validation images after epoch 1; training stopped"):
        training.train(small(16), 10, only_step, 0, checkpoints)
    assert checkpoints.latest() is None


@pytest.mark.integration
def test_fine_tuning_goes_on_from_the_base_and_leaves_it_alone(tmp_path: Path) -> None:
    arrays = small()
    kept = [Checkpoints(FolderStore(tmp_path), "run", name, {}) for name in ("base", "still", "tuned")]
    model = trained(PROFILE, 10, training.train(arrays, 10, PROFILE, 0, kept[0]).model)
    before = [weight.tobytes() for weight in model.get_weights()]
    motionless = replace(PROFILE, tuning=replace(PROFILE.tuning, learning_rate=0.0))
    still = tuning.tune(model, arrays, 10, motionless, 0, kept[1]).model
    for layer in still.layers:
        if not isinstance(layer, keras.layers.BatchNormalization):
            for a, b in zip(layer.get_weights(), model.get_layer(layer.name).get_weights(), strict=True):
                np.testing.assert_allclose(a / np.linalg.norm(a), b / np.linalg.norm(b), atol=1e-6)
    tuned = tuning.tune(model, arrays, 10, PROFILE, 0, kept[2]).model
    assert [weight.tobytes() for weight in model.get_weights()] == before
    kernels = [layer for layer in tuned.layers if isinstance(layer, keras.layers.Conv2D | keras.layers.Dense)]
    assert all(layer.kernel_regularizer.l2 == pytest.approx(PROFILE.tuning.l2) for layer in kernels)


def test_schedules_begin_and_end_where_they_should() -> None:
    cycle, decay = training.one_cycle, tuning.cosine
    assert [round(cycle(done), 4) for done in (0, 0.1, 1)] == [0.01, 1.0, 0.01]
    assert [round(decay(done), 4) for done in (0, 0.5, 1)] == [1.0, 0.5, 0.0]


@pytest.mark.integration
def test_the_published_model_keeps_the_answers_and_knows_noise(checkpoints: Checkpoints) -> None:
    arrays = small(640)
    network = training.train(arrays, 10, base(epochs=4), 0, checkpoints).model
    model = candidate(network, arrays)
    assert not any(isinstance(layer, keras.layers.BatchNormalization) for layer in model.layers)
    probabilities, familiarity = h5.predict(model, arrays.test_images)
    before = h5.classify(trained(PROFILE, 10, network), arrays.test_images)
    views = [h5.outputs(network, images)[0] for images in (arrays.test_images, arrays.test_images[:, :, ::-1])]
    np.testing.assert_allclose(before, keras.ops.softmax((views[0] + views[1]) / 2), atol=1e-4)
    np.testing.assert_array_equal(probabilities.argmax(axis=1), before.argmax(axis=1))
    np.testing.assert_allclose(probabilities, before, atol=1e-4)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(h5.classify(model, arrays.test_images), probabilities)
    softened = h5.classify(candidate(network, arrays, temperature=2.0), arrays.test_images)
    expected = probabilities**0.5 / (probabilities**0.5).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(softened, expected, atol=1e-4)
    bound = novelty.threshold(familiarity)
    assert (familiarity >= bound).mean() == pytest.approx(0.99)
    more, _ = synthetic.make_images(1_000, 3)
    _, mirrored = h5.predict(model, more[:, :, ::-1])
    assert (mirrored >= novelty.threshold(h5.predict(model, more)[1])).mean() > 0.95  # mirror images are clothing
    _, noise_familiarity = h5.predict(model, fake_images("Gaussian noise", arrays.test_images, 50, seed=0))
    assert (noise_familiarity < bound).mean() > 0.9
    answers = {novelty.answer(p, f, ["c"] * 10, bound) for p, f in zip(probabilities, noise_familiarity, strict=False)}
    assert novelty.NOT_CLOTHING in answers


def test_a_probe_of_all_pixels_says_what_one_of_their_means_does() -> None:
    random = np.random.default_rng(0)
    maps, kernel = random.random((5, 7, 7, 3), np.float32), random.random((4 * 4 * 3, 2), np.float32)
    means = np.asarray(keras.layers.AveragePooling2D(2, padding="same")(maps)).reshape(5, -1)
    np.testing.assert_allclose(maps.reshape(5, -1) @ novelty.for_pixels(kernel, (7, 7)), means @ kernel, rtol=1e-5)
