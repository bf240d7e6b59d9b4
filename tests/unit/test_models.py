"""The image models compute what plain NumPy loops over the same weights compute, and switch modes as Flax models do."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from numpy.lib.stride_tricks import sliding_window_view

from nagjax.models import CNN, ResNet
from nagjax.models.resnet import ResidualBlock

# Sums of at most some hundred products in float32.
CLOSE = {"rtol": 2e-5, "atol": 2e-5}


def images(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape, jnp.float32)


@nnx.jit
def call(model, inputs):
    return model(inputs)


def new(build):
    """A model made by one compiled program; layer by layer takes seconds."""
    return nnx.jit(build)()


def count(model):
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def double(variable):
    return np.asarray(variable[...], np.float64)


def numpy_convolution(inputs, layer, stride=1):
    """3x3 or 1x1 with zeros outside; an output stands every `stride` pixels, the window's excess is after the image."""
    kernel = double(layer.kernel)
    size = kernel.shape[0]
    padded = []
    for length in inputs.shape[1:3]:
        excess = max((-(-length // stride) - 1) * stride + size - length, 0)
        padded.append((excess // 2, excess - excess // 2))
    windows = sliding_window_view(np.pad(inputs, ((0, 0), *padded, (0, 0))), (size, size), axis=(1, 2))
    result = np.einsum("bhwckl,klcd->bhwd", windows[:, ::stride, ::stride], kernel)
    return result if layer.bias is None else result + double(layer.bias)


def numpy_pool(inputs):
    batch, height, width, channels = inputs.shape
    result = np.empty((batch, height // 2, width // 2, channels))
    for row in range(height // 2):
        for column in range(width // 2):
            result[:, row, column] = inputs[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].max(axis=(1, 2))
    return result


def numpy_cnn(model, inputs):
    hidden = np.asarray(inputs, np.float64)
    for layer in model.convolutions:
        hidden = numpy_pool(np.maximum(numpy_convolution(hidden, layer), 0))
    hidden = hidden.reshape(len(hidden), -1) @ double(model.hidden.kernel) + double(model.hidden.bias)
    return np.maximum(hidden, 0) @ double(model.logits.kernel) + double(model.logits.bias)


def numpy_norm(inputs, layer, running):
    axes = (0, 1, 2)
    mean, variance = (double(layer.mean), double(layer.var)) if running else (inputs.mean(axes), inputs.var(axes))
    return (inputs - mean) / np.sqrt(variance + 1e-5) * double(layer.scale) + double(layer.bias)


def numpy_resnet(model, inputs, running):
    hidden = numpy_convolution(np.asarray(inputs, np.float64), model.stem)
    for block in model.blocks:
        first, second = block.norms
        stride = block.expand.strides
        active = np.maximum(numpy_norm(hidden, first, running), 0)
        branch = np.maximum(numpy_norm(numpy_convolution(active, block.expand, stride), second, running), 0)
        shortcut = hidden if block.shortcut is None else numpy_convolution(active, block.shortcut, stride)
        hidden = shortcut + numpy_convolution(branch, block.contract)
    pooled = np.maximum(numpy_norm(hidden, model.norm, running), 0).mean(axis=(1, 2))
    return pooled @ double(model.logits.kernel) + double(model.logits.bias)


def filled(build, seed=0):
    """A model with random weights and statistics, which takes no compiled program; variances are positive."""
    model = nnx.eval_shape(build)
    generator = np.random.default_rng(seed)
    for path, variable in nnx.to_flat_state(nnx.state(model, (nnx.Param, nnx.BatchStat))):
        value = generator.normal(scale=0.3, size=variable.shape)
        variable.set_value(jnp.asarray(1 + value**2 if path[-1] == "var" else value, jnp.float32))
    return model


class TestCNN:
    @pytest.mark.parametrize("shape", [(28, 28, 1), (8, 8, 1), (32, 32, 3), (5, 7, 2)])
    def test_the_number_of_parameters_is_that_of_the_formula(self, shape):
        height, width, depth = shape
        model = nnx.eval_shape(lambda: CNN(shape, 10, rngs=nnx.Rngs(0)))
        convolutions = (9 * depth + 1) * 64 + (9 * 64 + 1) * 64
        dense = ((height // 4) * (width // 4) * 64 + 1) * 512 + (512 + 1) * 10
        assert count(model) == convolutions + dense
        assert nnx.eval_shape(lambda m, x: m(x), model, jnp.zeros((3, *shape), jnp.float32)).shape == (3, 10)

    @pytest.mark.parametrize("shape", [(8, 8, 1), (9, 6, 3)])
    def test_the_logits_are_those_of_numpy_loops(self, shape):
        model = filled(lambda: CNN(shape, 5, channels=(4, 6), hidden=7, rngs=nnx.Rngs(0)))
        inputs = images(3, *shape)
        np.testing.assert_allclose(call(model, inputs), numpy_cnn(model, inputs), **CLOSE)

    def test_the_gradient_of_pooling_goes_to_the_largest_pixel(self):
        model = new(lambda: CNN((2, 2, 1), 1, channels=(1,), hidden=1, rngs=nnx.Rngs(0)))
        for layer, value in ((model.hidden, 2.0), (model.logits, 3.0)):
            layer.kernel[...] = jnp.full_like(layer.kernel[...], value)
        kernel = jnp.zeros((3, 3, 1, 1), jnp.float32).at[1, 1].set(1)
        model.convolutions[0].kernel[...] = kernel
        inputs = jnp.array([[1.0, 2.0], [4.0, 3.0]], jnp.float32).reshape(1, 2, 2, 1)
        slope = jax.grad(lambda x: model(x).sum())(inputs)
        np.testing.assert_array_equal(slope.reshape(2, 2), [[0, 0], [6, 0]])

    def test_dropout_acts_in_training_and_not_in_evaluation(self):
        model = new(lambda: CNN((8, 8, 1), 10, channels=(4, 4), hidden=64, dropout=0.5, rngs=nnx.Rngs(0)))
        inputs = images(2, 8, 8, 1)
        first, second = call(model, inputs), call(model, inputs)
        assert not np.array_equal(first, second)
        plain = model(inputs, deterministic=True)
        model.eval()
        np.testing.assert_array_equal(call(model, inputs), plain)
        np.testing.assert_allclose(plain, numpy_cnn(model, inputs), **CLOSE)
        model.train()
        assert not np.array_equal(call(model, inputs), plain)

    def test_dropout_keeps_the_mean_of_the_logits(self):
        model = new(lambda: CNN((4, 4, 1), 1, channels=(2, 2), hidden=512, dropout=0.25, rngs=nnx.Rngs(0)))
        inputs = jnp.broadcast_to(images(1, 4, 4, 1), (2000, 4, 4, 1))
        draws = call(model, inputs)
        # Four standard errors; a mask without the factor 1/(1-p) is off by a quarter of the mean, which is larger.
        error = 4 * float(draws.std()) / 2000**0.5
        mean = float(model(inputs[:1], deterministic=True)[0, 0])
        assert abs(float(draws.mean()) - mean) < error < 0.2 * abs(mean)

    @pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.uint8, jnp.float64])
    def test_images_of_any_dtype_are_cast_to_that_of_the_weights(self, dtype):
        model = filled(lambda: CNN((8, 8, 1), 10, channels=(4, 4), hidden=8, rngs=nnx.Rngs(0)))
        inputs = jnp.round(10 * jnp.abs(images(2, 8, 8, 1)))  # whole numbers below 256 are exact in all of them
        logits = call(model, inputs.astype(dtype))
        assert logits.dtype == jnp.float32
        np.testing.assert_array_equal(logits, call(model, inputs))

    def test_weights_in_bfloat16_compute_in_bfloat16(self):
        model = filled(lambda: CNN((8, 8, 1), 10, channels=(4, 4), hidden=8, rngs=nnx.Rngs(0)))
        expected = numpy_cnn(model, images(2, 8, 8, 1))
        graph, state = nnx.split(model)
        half = nnx.merge(graph, jax.tree.map(lambda x: x.astype(jnp.bfloat16), state))
        logits = call(half, images(2, 8, 8, 1))
        assert logits.dtype == jnp.bfloat16
        # Eight bits of mantissa, a few roundings.
        np.testing.assert_allclose(logits.astype(jnp.float32), expected, atol=0.02 * np.abs(expected).max())

    def test_no_convolution_is_a_perceptron_of_the_pixels(self):
        model = filled(lambda: CNN((3, 3, 1), 4, channels=(), hidden=5, rngs=nnx.Rngs(0)))
        assert count(model) == (9 + 1) * 5 + (5 + 1) * 4
        inputs = images(2, 3, 3, 1)
        np.testing.assert_allclose(call(model, inputs), numpy_cnn(model, inputs), **CLOSE)

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"image_shape": (3, 8, 1)}, ValueError, r"image_shape must be at least 4 by 4, got \(3, 8, 1\)"),
            ({"image_shape": (8, 8)}, ValueError, r"image_shape must be \(height, width, channels\), got \(8, 8\)"),
            ({"image_shape": (8, 8, 0)}, ValueError, r"image_shape must be an integer of at least 1, got 0"),
            ({"classes": 0}, ValueError, r"classes must be an integer of at least 1, got 0"),
            ({"channels": (64, 1.5)}, TypeError, r"channels must be an integer of at least 1, got 1.5"),
            ({"hidden": -1}, ValueError, r"hidden must be an integer of at least 1, got -1"),
            ({"dropout": 1.0}, ValueError, r"dropout must be in \[0, 1\), got 1.0"),
        ],
    )
    def test_sizes_that_make_no_sense_are_refused(self, arguments, error, message):
        with pytest.raises(error, match=f"CNN: {message}; .*\\."):
            CNN(**arguments, rngs=nnx.Rngs(0))

    def test_images_of_another_shape_are_refused(self):
        model = filled(lambda: CNN((8, 8, 1), 10, channels=(4, 4), hidden=8, rngs=nnx.Rngs(0)))
        with pytest.raises(ValueError, match=r"CNN: images must be of shape \(batch, 8, 8, 1\), got \(2, 64\)"):
            model(jnp.zeros((2, 64), jnp.float32))


class TestResNet:
    @pytest.mark.parametrize(("channels", "width", "blocks"), [(1, 16, (1, 1, 1)), (3, 8, (2, 3)), (1, 4, (1,))])
    def test_the_number_of_parameters_is_that_of_the_formula(self, channels, width, blocks):
        model = nnx.eval_shape(lambda: ResNet(channels, 10, width=width, blocks=blocks, rngs=nnx.Rngs(0)))
        expected, inputs = 9 * channels * width, width
        for stage, number in enumerate(blocks):
            outputs = width * 2**stage
            for _ in range(number):
                shortcut = inputs * outputs if inputs != outputs else 0
                expected += 2 * inputs + 9 * inputs * outputs + 2 * outputs + 9 * outputs * outputs + shortcut
                inputs = outputs
        assert count(model) == expected + 2 * inputs + (inputs + 1) * 10
        inputs = jnp.zeros((2, 28, 28, channels), jnp.float32)
        assert nnx.eval_shape(lambda m, x: m(x), model, inputs).shape == (2, 10)

    @pytest.mark.parametrize("size", [(8, 8), (7, 5)])
    @pytest.mark.parametrize("running", [True, False])
    def test_the_logits_are_those_of_numpy_loops(self, size, running):
        model = filled(lambda: ResNet(2, 5, width=3, blocks=(2, 1), rngs=nnx.Rngs(0)))
        inputs = images(3, *size, 2)
        expected = numpy_resnet(model, inputs, running)
        model.eval() if running else model.train()
        np.testing.assert_allclose(call(model, inputs), expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())

    def test_a_new_block_of_unchanged_shape_is_the_identity(self):
        block = new(lambda: ResidualBlock(4, 4, rngs=nnx.Rngs(0)))
        hidden = images(2, 6, 6, 4)
        np.testing.assert_array_equal(block(hidden), hidden)

    def test_a_new_block_of_another_shape_is_its_shortcut(self):
        block = new(lambda: ResidualBlock(4, 8, stride=2, rngs=nnx.Rngs(0)))
        block.eval()
        hidden = images(2, 6, 6, 4)
        expected = numpy_convolution(np.maximum(np.asarray(hidden) / np.sqrt(1 + 1e-5), 0), block.shortcut, 2)
        assert block(hidden).shape == (2, 3, 3, 8)
        np.testing.assert_allclose(block(hidden), expected, **CLOSE)

    def test_a_block_learns_although_its_last_convolution_starts_at_zero(self):
        model = new(lambda: ResNet(1, 10, width=4, blocks=(1,), rngs=nnx.Rngs(0)))
        inputs, labels = images(8, 6, 6, 1), jnp.arange(8)
        slopes = nnx.grad(lambda m: optax.softmax_cross_entropy_with_integer_labels(m(inputs), labels).mean())(model)
        block = slopes["blocks"][0]
        assert float(jnp.abs(block["contract"]["kernel"][...]).max()) > 0
        assert float(jnp.abs(block["expand"]["kernel"][...]).max()) == 0  # behind the zeros, until the second step

    def test_the_statistics_move_in_training_and_not_in_evaluation(self):
        model = new(lambda: ResNet(1, 10, width=4, blocks=(1,), rngs=nnx.Rngs(0)))
        inputs = 1 + 2 * images(16, 6, 6, 1)
        hidden = numpy_convolution(np.asarray(inputs, np.float64), model.stem)
        layer = model.blocks[0].norms[0]
        model.eval()
        call(model, inputs)
        np.testing.assert_array_equal(layer.mean[...], 0)
        np.testing.assert_array_equal(layer.var[...], 1)
        model.train()
        call(model, inputs)
        # Flax's default keeps 0.99 of the old statistics.
        np.testing.assert_allclose(layer.mean[...], 0.01 * hidden.mean((0, 1, 2)), rtol=1e-4)
        np.testing.assert_allclose(layer.var[...], 0.99 + 0.01 * hidden.var((0, 1, 2)), rtol=1e-4)

    def test_in_evaluation_an_image_does_not_depend_on_its_batch_and_in_training_it_does(self):
        model = filled(lambda: ResNet(1, 3, width=4, blocks=(1, 1), rngs=nnx.Rngs(0)))
        inputs = images(6, 8, 8, 1)
        model.eval()
        np.testing.assert_allclose(call(model, inputs)[:2], call(model, inputs[:2]), rtol=1e-4, atol=1e-5)
        model.train()
        assert not np.allclose(call(model, inputs)[:2], call(model, inputs[:2]), rtol=1e-2)

    def test_images_in_bfloat16_are_cast_to_the_dtype_of_the_weights(self):
        model = filled(lambda: ResNet(1, 3, width=4, blocks=(1,), rngs=nnx.Rngs(0)))
        model.eval()
        inputs = images(2, 6, 6, 1).astype(jnp.bfloat16)
        logits = call(model, inputs)
        assert logits.dtype == jnp.float32
        np.testing.assert_array_equal(logits, call(model, inputs.astype(jnp.float32)))

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"channels": 0, "classes": 10}, ValueError, r"channels must be an integer of at least 1, got 0"),
            ({"channels": 1, "classes": 2.0}, TypeError, r"classes must be an integer of at least 1, got 2.0"),
            ({"channels": 1, "classes": 2, "width": 0}, ValueError, r"width must be an integer of at least 1, got 0"),
            ({"channels": 1, "classes": 2, "blocks": ()}, ValueError, r"blocks must be at least one stage, got \(\)"),
            (
                {"channels": 1, "classes": 2, "blocks": (1, 0)},
                ValueError,
                r"blocks must be an integer of at least 1, got 0",
            ),
        ],
    )
    def test_sizes_that_make_no_sense_are_refused(self, arguments, error, message):
        with pytest.raises(error, match=f"ResNet: {message}; .*\\."):
            ResNet(**arguments, rngs=nnx.Rngs(0))

    def test_images_of_another_shape_are_refused(self):
        model = filled(lambda: ResNet(1, 10, width=4, rngs=nnx.Rngs(0)))
        for shape in ((2, 8, 8, 3), (8, 8, 1)):
            with pytest.raises(ValueError, match=r"ResNet: images must be of shape \(batch, height, width, 1\), got"):
                model(jnp.zeros(shape, jnp.float32))
