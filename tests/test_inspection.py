"""A look inside: attention and the distances of layers, against the plain outputs; pictures show what the arrays say."""

from typing import Any

import jax
import numpy as np
import pytest

from albert_jax.config import InputError
from albert_jax.inference import inspection

from .small_models import Loaded, random_model


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return random_model()


def test_attention_maps(loaded: Loaded) -> None:
    """Rows are distributions over the pieces of this text; fails if batch and head change places."""
    model, params, tokenizer = loaded
    maps, pieces = inspection.attention_maps(*loaded, "the text has lines", "and more")
    assert maps.shape == (2, 2, len(pieces), len(pieces))
    assert pieces[0] == "[CLS]"
    assert pieces.count("[SEP]") == 2
    np.testing.assert_allclose(maps.sum(-1), 1, atol=1e-5)
    apply: Any = model.apply
    whole = apply({"params": params}, **tokenizer("the text has lines", "and more"), output_attentions=True)
    np.testing.assert_allclose(maps, whole["attentions"][:, 0], atol=1e-6)


def test_attention_rollout() -> None:
    """Against the sum over all paths of attention; fails if layers are multiplied in the wrong order, or heads are summed."""
    random = np.random.default_rng(0)
    maps = random.dirichlet(np.ones(3), (2, 4, 3))  # 2 layers, 4 heads, 3 positions
    found = inspection.attention_rollout(maps)
    first, second = (0.5 * maps[layer].mean(0) + 0.5 * np.eye(3) for layer in range(2))
    np.testing.assert_allclose(found[0], first)
    for i in range(3):
        for j in range(3):
            paths = sum(second[i, middle] * first[middle, j] for middle in range(3))
            assert found[1, i, j] == pytest.approx(paths)
    np.testing.assert_allclose(found.sum(-1), 1)


def test_layer_distances(loaded: Loaded) -> None:
    """Against a loop over tokens; fails if padding counts, or the angle is of means."""
    model, params, tokenizer = loaded
    texts = ["the text has lines", "more of it, in 2010, and on", "x"]
    found = inspection.layer_distances(model, params, tokenizer(texts))
    apply: Any = model.apply
    l2, cosine = [], []
    for text in texts:
        states = np.asarray(apply({"params": params}, **tokenizer(text), output_hidden_states=True)["hidden_states"])
        before, after = states[:-1, 0], states[1:, 0]
        l2.append(np.linalg.norm(after - before, axis=-1))
        cosine.append((before * after).sum(-1) / np.linalg.norm(before, axis=-1) / np.linalg.norm(after, axis=-1))
    np.testing.assert_allclose(found["l2"], np.concatenate(l2, 1).mean(1), rtol=1e-4)
    np.testing.assert_allclose(found["cosine"], np.concatenate(cosine, 1).mean(1), atol=1e-5)
    alone = {"input_ids": tokenizer("x")["input_ids"]}  # nothing is padding
    again = inspection.layer_distances(model, params, tokenizer("x"))
    np.testing.assert_array_equal(inspection.layer_distances(model, params, alone)["l2"], again["l2"])
    degrees = np.degrees(np.arccos(np.concatenate(cosine, 1))).mean(1)
    np.testing.assert_allclose(found["degrees"], degrees, rtol=1e-3)


def test_pictures(loaded: Loaded) -> None:
    model, params, tokenizer = loaded
    maps, pieces = inspection.attention_maps(*loaded, "the text has lines")
    figure = inspection.draw_attention(maps, pieces)
    shown = [np.asarray(axes.images[0].get_array()) for axes in figure.axes]
    assert all(np.array_equal(a, b) for a, b in zip(shown, maps.reshape(-1, *maps.shape[2:]), strict=True))
    one = inspection.draw_attention(maps, pieces, layers=[1], heads=[0])
    assert [label.get_text() for label in one.axes[0].get_yticklabels()] == pieces
    with pytest.raises(InputError, match="layers: expected one or more numbers"):
        inspection.draw_attention(maps, pieces, layers=[])
    for chosen in ({"layers": [2]}, {"heads": [-1]}):
        with pytest.raises(InputError, match=r"expected one or more numbers in \[0, 2\)"):
            inspection.draw_attention(maps, pieces, **chosen)
    found = inspection.layer_distances(model, params, tokenizer("the text has lines"))
    with pytest.raises(InputError, match="give each model a label"):
        inspection.draw_layer_distances(found)
    curves = inspection.draw_layer_distances({"this": found, "that": jax.tree.map(lambda x: x + 1, found)})
    assert [line.get_label() for line in curves.axes[0].lines] == ["this", "that"]
    np.testing.assert_array_equal(curves.axes[0].lines[0].get_ydata(), found["l2"])
    np.testing.assert_array_equal(curves.axes[1].lines[0].get_ydata(), found["degrees"])
