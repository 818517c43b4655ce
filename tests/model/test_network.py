"""Network, training batches, training, fine-tuning and OOD detection, on a few synthetic images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest

from fmnist_tasks.data.dataset import Arrays
from fmnist_tasks.data.shards import ShardedImages
from fmnist_tasks.errors import TrainingError
from fmnist_tasks.model import h5, training, tuning
from fmnist_tasks.model.cnn import build_classifier, build_network, export_for_inference, find_first_convolution
from fmnist_tasks.model.mini_batches import augment, cutmix, make_training_batches
from fmnist_tasks.model.normalisation import FusedBatchNormalization
from fmnist_tasks.model.ood import detector
from fmnist_tasks.model.ood.detector import add_ood_head, choose_label, choose_threshold, expand_pooled_kernel
from fmnist_tasks.model.ood.families import make_ood_images
from fmnist_tasks.model.temperature import fit_temperature
from fmnist_tasks.model.whitening import init_whitening_kernel
from fmnist_tasks.registry.checkpoints import Checkpoints
from fmnist_tasks.registry.folder import FolderStore
from fmnist_tasks.settings import PROFILES, Profile
from tests.support import synthetic

STAGE = replace(PROFILES["quick"].base, epochs=2, batch_size=32)
PROFILE = replace(PROFILES["quick"], base=STAGE, tuning=replace(PROFILES["quick"].tuning, epochs=1, batch_size=32))


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(FolderStore(tmp_path), "run", "base-0", {})


def make_arrays(count: int = 320) -> Arrays:
    images, labels = synthetic.make_images(count, 1)
    validation = synthetic.make_images(100, 2)
    return Arrays(ShardedImages.from_arrays(images, labels), *validation, *validation)


def make_candidate(network: keras.Model, arrays: Arrays, temperature: float = 1.0) -> keras.Model:
    classifier = export_for_inference(
        PROFILE, 10, synthetic.FORMAT, build_classifier(PROFILE, 10, synthetic.FORMAT, network), temperature
    )
    return add_ood_head(classifier, arrays.training, synthetic.PROPERTIES)


def make_profile(**changes: object) -> Profile:
    return replace(PROFILE, base=replace(STAGE, **changes))


@pytest.mark.parametrize("name", PROFILES)
def test_the_network_has_the_layers_of_the_design(name: str) -> None:
    model = build_network(PROFILES[name], 10, synthetic.FORMAT)
    kinds = [type(layer).__name__ for layer in model.layers]
    assert kinds[:2] == ["InputLayer", "Rescaling"]
    assert {"Conv2D", "MaxPooling2D", "Dropout"} <= set(kinds)
    assert kinds[-1] == "Dense"
    assert model.layers[1].scale == pytest.approx(1 / 255)
    assert all(variable.dtype == "float32" for variable in model.weights)
    second = build_network(PROFILES[name], 10, synthetic.FORMAT)
    assert [layer.name for layer in model.layers] == [layer.name for layer in second.layers]


@pytest.mark.parametrize("name", PROFILES)
def test_export_for_inference_keeps_the_predictions_of_every_profile(name: str) -> None:
    keras.utils.set_random_seed(0)
    network, random = build_network(PROFILES[name], 10, synthetic.FORMAT), np.random.default_rng(0)
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([random.uniform(0.5, 2, weight.shape) for weight in layer.get_weights()])
    classifier, (images, _) = (
        build_classifier(PROFILES[name], 10, synthetic.FORMAT, network),
        synthetic.make_images(20, 1),
    )
    log_probabilities = np.log(
        h5.classify(export_for_inference(PROFILES[name], 10, synthetic.FORMAT, classifier, temperature=1.0), images)
    )
    np.testing.assert_allclose(log_probabilities, np.log(h5.classify(classifier, images)), atol=1e-3)
    assert np.ptp(log_probabilities, axis=0).max() > 1  # they differ between images


def test_an_image_and_its_flip_get_the_same_probabilities() -> None:
    images, _ = synthetic.make_images(50, 1)
    classifier = build_classifier(PROFILE, 10, synthetic.FORMAT, build_network(PROFILE, 10, synthetic.FORMAT))
    original, flipped = h5.classify(classifier, images), h5.classify(classifier, images[:, :, ::-1])
    np.testing.assert_allclose(original, flipped, atol=1e-6)
    assert np.ptp(original, axis=0).max() > 0.01  # they differ between images


def test_fused_normalisation_equals_the_built_in_layer() -> None:
    x = np.random.default_rng(0).normal(3, 2, (64, 7, 7, 8)).astype(np.float32)
    fused, plain = FusedBatchNormalization(scale=False), keras.layers.BatchNormalization(scale=False)
    for layer in (fused, plain):
        layer.build(x.shape)
    np.testing.assert_allclose(fused(x, training=True), plain(x, training=True), rtol=1e-4, atol=1e-4)
    for a, b in zip(fused.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3)  # the fused variance divides by N - 1
    np.testing.assert_allclose(fused(x), plain(x), rtol=1e-2, atol=1e-2)


def test_augmentation_only_flips_and_shifts() -> None:
    image = np.zeros((28, 28), np.uint8)
    image[10:14, 5:8] = 200
    batch = np.broadcast_to(image, (400, 28, 28)).copy()
    augmented = augment(batch, replace(STAGE, shift=1), np.random.default_rng(0), flip=True)
    variants = {picture.tobytes() for picture in augmented}
    expected = {
        np.roll(base, (down, right), (0, 1)).tobytes()
        for base in (image, image[:, ::-1])
        for down in (-1, 0, 1)
        for right in (-1, 0, 1)
    }
    assert variants == expected


def test_cutmix_takes_a_square_and_its_share_of_the_target_from_the_previous_image() -> None:
    count = 2_000
    images = np.broadcast_to(np.arange(count)[:, None, None] % 10, (count, 28, 28)).astype(np.uint8)
    targets = np.eye(10, dtype=np.float32)[images[:, 0, 0]]
    mixed, mixed_targets = cutmix(images, targets, 0.5, np.random.default_rng(0))
    for number in range(count):
        pasted = mixed[number] != number % 10
        assert set(mixed[number][pasted]) <= {(number - 1) % 10}
        expected = np.zeros(10)
        expected[number % 10], expected[(number - 1) % 10] = 1 - pasted.mean(), pasted.mean()
        np.testing.assert_allclose(mixed_targets[number], expected, atol=1e-6)
        rows, columns = np.flatnonzero(pasted.any(axis=1)), np.flatnonzero(pasted.any(axis=0))
        assert pasted.sum() == len(rows) * len(columns)  # one rectangle, without holes
        if len(rows):
            assert np.ptp(rows) + 1 == len(rows)
    mixed_share = (mixed != images).any(axis=(1, 2)).mean()
    assert 0.45 < mixed_share < 0.55
    assert cutmix(images, targets, 0.0, np.random.default_rng(0)) == (images, targets)


def test_every_epoch_has_every_image_once_in_a_new_order() -> None:
    images, labels = synthetic.make_images(325, 1)

    def make_epoch(number: int) -> list[np.ndarray]:
        batches = make_training_batches(
            ShardedImages.from_arrays(images, labels), STAGE, classes=10, seed=0, epoch=number, flip=True
        )
        return [np.concatenate(arrays) for arrays in zip(*batches, strict=True)]

    first, second = make_epoch(0), make_epoch(1)
    assert all((a == b).all() for a, b in zip(first, make_epoch(0), strict=True))
    assert first[0].shape == (320, 28, 28, 1)
    assert (first[1] != second[1]).any()
    labels_by_image = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
    labels_by_image |= {image[:, ::-1].tobytes(): label for image, label in zip(images, labels, strict=True)}
    for variants, targets in (first, second):
        assert (targets == np.eye(10)[[labels_by_image[variant.tobytes()] for variant in variants]]).all()
        assert len({min(v.tobytes(), v[:, ::-1].tobytes()) for v in variants}) == 320


@pytest.mark.integration
def test_the_same_seed_gives_the_same_weights_and_another_seed_different_ones(tmp_path: Path) -> None:
    arrays = make_arrays()
    stores = [Checkpoints(FolderStore(tmp_path / name), "run", "base", {}) for name in "abc"]
    fits = [
        training.train_model(arrays, 10, synthetic.FORMAT, PROFILE, seed, checkpoints)
        for seed, checkpoints in zip((3, 3, 4), stores, strict=True)
    ]
    first, second, other = ([weight.tobytes() for weight in fit.model.get_weights()] for fit in fits)
    assert first == second
    assert first != other
    models = [make_candidate(fit.model, arrays) for fit in fits[:2]]
    assert h5.encode_model(models[0]) == h5.encode_model(models[1])


@pytest.mark.integration
def test_the_first_convolution_starts_with_whitening_filters(checkpoints: Checkpoints) -> None:
    arrays = make_arrays()
    unchanged = training.train_model(
        arrays, 10, synthetic.FORMAT, make_profile(epochs=1, learning_rate=0.0), 0, checkpoints
    ).model
    (kernel,) = find_first_convolution(unchanged).get_weights()
    np.testing.assert_array_equal(kernel, init_whitening_kernel(kernel, arrays.training))


@pytest.mark.integration
def test_label_smoothing_lowers_confidence_but_does_not_change_the_reported_loss(tmp_path: Path) -> None:
    def train(**changes: object) -> training.Fit:
        checkpoints = Checkpoints(FolderStore(tmp_path / repr(changes)), "run", "base", {})
        return training.train_model(make_arrays(), 10, synthetic.FORMAT, make_profile(**changes), 0, checkpoints)

    plain, smoothed = (train(epochs=1, learning_rate=0.0, label_smoothing=share).curves.loss for share in (0.0, 0.5))
    assert plain == smoothed
    confidences = []
    for share in (0.0, 0.5):
        model = build_classifier(PROFILE, 10, synthetic.FORMAT, train(epochs=8, label_smoothing=share).model)
        confidences.append(np.median(h5.classify(model, make_arrays().validation_images).max(axis=1)))
    assert confidences[0] > 0.9
    assert confidences[1] == pytest.approx(0.55, abs=0.1)  # the smoothed target: 0.5 + 0.5 / 10


@pytest.mark.integration
def test_training_learns_and_reports_every_epoch(checkpoints: Checkpoints, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    fit = training.train_model(make_arrays(), 10, synthetic.FORMAT, make_profile(epochs=4), 0, checkpoints)
    assert fit.curves.val_accuracy[fit.best_epoch - 1] > 0.9
    assert {len(values) for values in fit.curves.to_json().values()} == {4}
    assert caplog.text.count("validation accuracy") == 4
    assert "epoch 4/4" in caplog.text


@pytest.mark.integration
def test_early_stopping_restores_the_best_epoch(checkpoints: Checkpoints) -> None:
    arrays = make_arrays()
    shuffled = replace(arrays, validation_labels=np.random.default_rng(0).permutation(arrays.validation_labels))
    fit = training.train_model(shuffled, 10, synthetic.FORMAT, make_profile(epochs=30, patience=2), 0, checkpoints)
    losses = fit.curves.val_loss
    assert len(losses) == fit.best_epoch + 2 < 30
    logits = fit.model.predict(arrays.validation_images[..., None].astype(np.float32), verbose=0)
    _, loss = fit_temperature(shuffled.validation_labels, keras.ops.softmax(logits).numpy())
    assert loss == pytest.approx(min(losses), rel=1e-3)


@pytest.mark.integration
def test_a_nan_loss_stops_training_at_once(checkpoints: Checkpoints) -> None:
    with pytest.raises(
        TrainingError, match=r"loss is (nan|inf) at step \d+ of epoch 1; training stopped, nothing was saved"
    ):
        training.train_model(
            make_arrays(), 10, synthetic.FORMAT, make_profile(learning_rate=float("inf")), 0, checkpoints
        )


@pytest.mark.integration
def test_weights_that_become_nan_in_the_last_step_stop_training_too(checkpoints: Checkpoints) -> None:
    only_step = make_profile(epochs=1, learning_rate=float("inf"))  # its training loss is that of the initial weights
    with pytest.raises(TrainingError, match=r"loss is nan on the validation images after epoch 1; training stopped"):
        training.train_model(make_arrays(16), 10, synthetic.FORMAT, only_step, 0, checkpoints)
    assert checkpoints.load_latest() is None


@pytest.mark.integration
def test_fine_tuning_starts_from_the_base_model_and_does_not_change_it(tmp_path: Path) -> None:
    arrays = make_arrays()
    checkpoints = [Checkpoints(FolderStore(tmp_path), "run", name, {}) for name in ("base", "unchanged", "tuned")]
    model = build_classifier(
        PROFILE,
        10,
        synthetic.FORMAT,
        training.train_model(arrays, 10, synthetic.FORMAT, PROFILE, 0, checkpoints[0]).model,
    )
    before = [weight.tobytes() for weight in model.get_weights()]
    no_learning = replace(PROFILE, tuning=replace(PROFILE.tuning, learning_rate=0.0))
    unchanged = tuning.fine_tune_model(model, arrays, 10, synthetic.FORMAT, no_learning, 0, checkpoints[1]).model
    for layer in unchanged.layers:
        if not isinstance(layer, keras.layers.BatchNormalization):
            for a, b in zip(layer.get_weights(), model.get_layer(layer.name).get_weights(), strict=True):
                np.testing.assert_allclose(a / np.linalg.norm(a), b / np.linalg.norm(b), atol=1e-6)
    tuned = tuning.fine_tune_model(model, arrays, 10, synthetic.FORMAT, PROFILE, 0, checkpoints[2]).model
    assert [weight.tobytes() for weight in model.get_weights()] == before
    kernels = [layer for layer in tuned.layers if isinstance(layer, keras.layers.Conv2D | keras.layers.Dense)]
    assert all(layer.kernel_regularizer.l2 == pytest.approx(PROFILE.tuning.l2) for layer in kernels)


def test_schedules_have_their_first_highest_and_last_values() -> None:
    cycle, decay = training.one_cycle, tuning.cosine
    assert [round(cycle(progress), 4) for progress in (0, 0.1, 1)] == [0.01, 1.0, 0.01]
    assert [round(decay(progress), 4) for progress in (0, 0.5, 1)] == [1.0, 0.5, 0.0]


@pytest.mark.integration
def test_the_released_model_keeps_the_predictions_and_detects_noise(checkpoints: Checkpoints) -> None:
    arrays = make_arrays(640)
    network = training.train_model(arrays, 10, synthetic.FORMAT, make_profile(epochs=4), 0, checkpoints).model
    model = make_candidate(network, arrays)
    assert not any(isinstance(layer, keras.layers.BatchNormalization) for layer in model.layers)
    probabilities, ood_scores = h5.predict(model, arrays.test_images)
    before = h5.classify(build_classifier(PROFILE, 10, synthetic.FORMAT, network), arrays.test_images)
    views = [h5.predict_outputs(network, images)[0] for images in (arrays.test_images, arrays.test_images[:, :, ::-1])]
    np.testing.assert_allclose(before, keras.ops.softmax((views[0] + views[1]) / 2), atol=1e-4)
    np.testing.assert_array_equal(probabilities.argmax(axis=1), before.argmax(axis=1))
    np.testing.assert_allclose(probabilities, before, atol=1e-4)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(h5.classify(model, arrays.test_images), probabilities)
    softened = h5.classify(make_candidate(network, arrays, temperature=2.0), arrays.test_images)
    expected = probabilities**0.5 / (probabilities**0.5).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(softened, expected, atol=1e-4)
    threshold = choose_threshold(ood_scores)
    assert (ood_scores <= threshold).mean() == pytest.approx(0.99)
    more_images, _ = synthetic.make_images(1_000, 3)
    _, flipped = h5.predict(model, more_images[:, :, ::-1])
    assert (flipped <= choose_threshold(h5.predict(model, more_images)[1])).mean() > 0.95  # flips are in distribution
    noise, noise_scores = h5.predict(model, make_ood_images("Gaussian noise", arrays.test_images, 50, seed=0))
    assert (noise_scores > threshold).mean() > 0.9
    assert np.median(noise_scores) > 0 > np.median(ood_scores)  # the logit of being out of distribution
    labels = [choose_label(p, s, synthetic.PROPERTIES, threshold) for p, s in zip(noise, noise_scores, strict=True)]
    assert labels.count("not a pattern") == (noise_scores > threshold).sum()


def test_the_threshold_itself_is_in_distribution() -> None:
    scores = np.linspace(-3, 2, 101)
    threshold = choose_threshold(scores)
    assert threshold == pytest.approx(scores[99])  # one of a hundred validation images is above it
    probabilities = np.array([0.1, 0.7, 0.2])
    dataset = synthetic.PROPERTIES.model_copy(update={"classes": ["shirt", "bag", "coat"]})
    labels = [choose_label(probabilities, score, dataset, threshold) for score in (threshold, threshold + 1e-6)]
    assert labels == ["bag", "not a pattern"]


def test_a_probe_on_all_pixels_equals_one_on_pooled_features() -> None:
    random = np.random.default_rng(0)
    maps, kernel = random.random((5, 7, 7, 3), np.float32), random.random((4 * 4 * 3, 2), np.float32)
    means = np.asarray(keras.layers.AveragePooling2D(2, padding="same")(maps)).reshape(5, -1)
    np.testing.assert_allclose(maps.reshape(5, -1) @ expand_pooled_kernel(kernel, (7, 7)), means @ kernel, rtol=1e-5)


def test_the_ood_probe_is_fitted_on_fewer_large_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory of their features grows with the pixels."""
    monkeypatch.setattr(detector, "_MAX_TRAINING_IMAGES", 160)
    monkeypatch.setattr(detector, "_MAX_OOD_IMAGES", 80)
    images = np.random.default_rng(0).integers(0, 256, (50, 64, 64), np.uint8)
    training_images = ShardedImages.from_arrays(images, np.zeros(50, np.uint8))
    image_format = synthetic.FORMAT.model_copy(update={"height": 64, "width": 64, "horizontal_flip": False})
    dataset = synthetic.PROPERTIES.model_copy(update={"image_format": image_format})
    chosen, is_ood = detector._make_training_images(training_images, dataset)
    assert ((~is_ood).sum(), is_ood.sum() % 20) == (40, 0)
    assert 0 < is_ood.sum() <= 20 * 11
    assert chosen.shape == (len(is_ood), 64, 64)
