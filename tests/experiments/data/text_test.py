"""The text is whole, each part of it in one split, and labels are what comes next."""

from pydoc_data import topics

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import data as datasets
from experiments.networks import MODELS
from experiments.training.training import Run, make_training, num_kernels

TEXT = "".join(topics.topics[name] for name in sorted(topics.topics))
CHARACTERS = sorted(set(TEXT))


@pytest.fixture(scope="module")
def data():
    return datasets.load("python_reference")


def said(window):
    return "".join(CHARACTERS[int(i)] for i in np.ravel(window))


def test_windows_are_the_text_each_once(data):
    windows = [said(x) for split in data[:3] for x in split.images]
    original = [TEXT[i : i + 16] for i in range(0, len(TEXT) - 16, 16)]
    assert sorted(windows) == sorted(original)
    assert len(data.train.labels) > 9 * len(data.test.labels)
    assert abs(len(data.test.labels) - len(data.validation.labels)) <= 1


def test_labels_are_the_next_characters(data):
    for split in data[:3]:
        seen, labels = split.images[:, :, 0, 0], split.labels
        np.testing.assert_array_equal(seen[:, 1:], labels[:, :-1])
        for i in (0, len(labels) // 2, len(labels) - 1):
            assert said(seen[i]) + said(labels[i, -1]) in TEXT


def test_standardising_leaves_the_numbers_of_characters(data):
    numbers = datasets.standardise(data.test.images, data.mean, data.deviation)
    np.testing.assert_array_equal(numbers, data.test.images)
    assert data.num_classes == len(CHARACTERS)


def training_of(data, name, **settings):
    sizes = {"depth": 1, "width": 8, "activation": "gelu", "normalization": "none"}
    model = MODELS[name](data.num_classes, **sizes, compute_dtype="float32", **settings)
    training = make_training(model, optax.adam, num_steps=150, batch_size=64)
    run = Run(jnp.int32(0), jnp.ones(num_kernels(model, data)), jnp.float32(0.01))
    return training, run


def test_metrics_are_means_over_characters(data):
    training, run = training_of(data, "decoder", heads=2)
    with jax.numpy_dtype_promotion("standard"):
        state = training.init(run, data)
        few = datasets.Split(*(x[:7] for x in data.test))
        mask = jnp.arange(7) < 5
        sums = training.evaluate_part(state, data, few, mask)
        first = training.evaluate(state, data, datasets.Split(*(x[:5] for x in few)))
    assert sums.examples == 5 * 16
    np.testing.assert_allclose(sums.loss / sums.examples, first.loss, rtol=1e-5)
    np.testing.assert_allclose(sums.correct / sums.examples, first.accuracy)


def test_a_decoder_learns_more_than_how_often_characters_come(data):
    training, run = training_of(data, "decoder", heads=2)
    with jax.numpy_dtype_promotion("standard"):
        result = jax.jit(training.train)(run, data)
    most_frequent = np.bincount(np.ravel(data.test.labels)).max()
    share = most_frequent / data.test.labels.size
    assert result.test_accuracy > share + 0.03


def test_other_networks_say_that_texts_are_not_for_them(data):
    training, run = training_of(data, "residual_mlp")
    state = training.init(run, data)
    with pytest.raises(ValueError, match="texts need model"):
        training.step(state, run, data, jnp.arange(4))
