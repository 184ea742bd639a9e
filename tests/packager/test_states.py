"""`skerry_packager.states`: which outputs a model feeds back to itself; shapes alone are no evidence."""

from __future__ import annotations

import pytest

from skerry_contract.errors import DataError, InputError
from skerry_packager.inspect import TensorInfo
from skerry_packager.states import begin_states, find_states

Shape = tuple[int | str | None, ...]


def infos(names: str, shape: Shape = (1, "N", 8), dtype: str = "float32") -> list[TensorInfo]:
    return [TensorInfo(name=name, dtype=dtype, shape=shape) for name in names.split()]


@pytest.mark.parametrize(
    ("inputs", "outputs", "loops"),
    [
        ("input state sr", "output stateN", "stateN=state"),
        ("input h c", "prob hn cn", "hn=h cn=c"),
        ("x h0 c0", "y hn cn", "hn=h0 cn=c0"),
        ("x h_0", "y h_n", "h_n=h_0"),
        ("x state_in", "y state_out", "state_out=state_in"),
        ("x input_state", "y output_state", "output_state=input_state"),
        ("input_node previous_state_c previous_state_h", "logits new_state_c new_state_h",
         "new_state_c=previous_state_c new_state_h=previous_state_h"),
        ("x cached_len_0 cached_len_1", "y new_cached_len_0 new_cached_len_1",
         "new_cached_len_0=cached_len_0 new_cached_len_1=cached_len_1"),
        ("x cache_last_channel", "y cache_last_channel_next", "cache_last_channel_next=cache_last_channel"),
        ("chunk att_cache cnn_cache", "y r_att_cache r_cnn_cache",
         "r_att_cache=att_cache r_cnn_cache=cnn_cache"),
        ("ids past_key_values.0.key past_key_values.1.key", "logits present.0.key present.1.key",
         "present.0.key=past_key_values.0.key present.1.key=past_key_values.1.key"),
        ("serving_default_x:0 serving_default_gru_state:0", "y:0 gru_state_out:0",
         "gru_state_out:0=serving_default_gru_state:0"),
    ],
)  # fmt: skip
def test_names_that_speak_of_a_state_are_found(inputs: str, outputs: str, loops: str) -> None:
    expected = dict(pair.split("=") for pair in loops.split())
    assert find_states(infos(inputs), infos(outputs)) == expected


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        ("input", "output"),  # an autoencoder
        ("image", "image_out"),
        ("x_in y", "x_out z"),
        ("input_ids attention_mask", "last_hidden_state pooler_output"),
        ("hidden_states timestep", "hidden_states_out sample"),  # activations of one layer
        ("encoder_hidden_states x", "encoder_last_hidden_state y"),
        ("state action", "value reward"),
        ("c_in x", "c_out y"),  # channels, where nothing is called h
        ("x state", "y state_out new_state"),  # which of the two?
        ("serving_default_x:0 mask", "StatefulPartitionedCall:0 StatefulPartitionedCall:1"),
        ("state_in", "state_out"),  # nothing left to feed
    ],
)
def test_ordinary_models_have_none(inputs: str, outputs: str) -> None:
    assert find_states(infos(inputs), infos(outputs)) == {}


def test_types_and_shapes_must_fit() -> None:
    data = infos("input")
    assert find_states([*data, *infos("state", (2, "N", 128))], infos("stateN", (2, "N", 64))) == {}
    assert find_states([*data, *infos("state", (2, "N", 128))], infos("stateN", (None, None, None)))
    assert find_states([*data, *infos("state")], infos("stateN", dtype="float16")) == {}


def test_what_cannot_be_guessed_is_told() -> None:
    inputs, outputs = infos("input_1 input_2"), infos("output_1 output_2")
    assert find_states(inputs, outputs) == {}
    assert find_states(inputs, outputs, ["output_2=input_2"]) == {"output_2": "input_2"}
    assert find_states(infos("input state"), infos("output stateN"), ["none"]) == {}


@pytest.mark.parametrize(
    ("told", "says"),
    [
        (["output_3=input_2"], "names no loop"),
        (["output_2"], "names no loop"),
        (["output_2=wide"], r"shape \[1, 'N', 8\] into \[1, 'N', 9\]"),
        (["output_1=input_2", "output_2=input_2"], "in another loop already"),
        (["output_1=input_1", "output_2=input_2", "wide_out=wide"], "nothing is left to feed"),
    ],
)
def test_loops_that_cannot_be_are_refused_with_the_names(told: list[str], says: str) -> None:
    inputs = [*infos("input_1 input_2"), *infos("wide", (1, "N", 9))]
    outputs = [*infos("output_1 output_2"), *infos("wide_out", (1, "N", 9))]
    with pytest.raises(InputError, match=says) as caught:
        find_states(inputs, outputs, told)
    assert caught.value.hint


def test_a_sequence_begins_with_zeros_for_a_batch_of_one_and_a_cache_of_nothing() -> None:
    inputs = [
        *infos("x"),
        *infos("state", (2, "batch", 128)),
        *infos("past", ("batch", 4, "past_sequence", 16), "float16"),
    ]
    begun = begin_states(inputs, {"stateN": "state", "present": "past"})
    assert {name: (array.shape, array.dtype.name) for name, array in begun.items()} == {
        "state": ((2, 1, 128), "float32"), "past": ((1, 4, 0, 16), "float16"),
    }  # fmt: skip
    assert not begun["state"].any()
    unknown = TensorInfo(name="state", dtype="float32", shape=(), ranked=False)
    with pytest.raises(DataError, match="no declared shape"):
        begin_states([unknown], {"stateN": "state"})
